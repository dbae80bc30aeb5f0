"""Files of network weights: written whole or not at all, and read with an error that says what is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .atomic import explain_full, replacing
from .checks import PlainError, SettingError

logger = logging.getLogger(__name__)

# Where the released weights lie in the bundle's folder, and where trainings write theirs by default.
PLACES = {
    "autoencoder_path": ("models/model_autoencoder.pt", "runs/autoencoder/model_autoencoder.pt"),
    "model_path": ("models/model.pt", "runs/diffusion/model.pt"),
}
CONDITIONAL = ("models/model_conditional.pt", "runs/conditional/model.pt")  # of a generator that knows conditions


def save_weights(network: nn.Module, path: str | os.PathLike, dtype: torch.dtype = torch.float32) -> None:
    """Write a network's state dict; an interruption leaves the earlier file as it was.

    Args:
        network: what to save.
        path: the file to write; its folder is made.
        dtype: type that the parameters are rounded to in the file; buffers stay as they are.
    """
    rounded = {name: parameter.detach().to(dtype) for name, parameter in network.named_parameters()}
    # on the CPU, so that a machine without a GPU can read the file
    write_state({name: value.cpu() for name, value in (network.state_dict() | rounded).items()}, path)
    logger.info("saved %s", path)


def write_state(weights: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a state dict; an interruption leaves the earlier file as it was."""
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(weights, file)
    except RuntimeError as error:  # torch's own, around that of a disk that is full
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise PlainError(explain_full(path, cause)) from error


def find_weights(path: str | os.PathLike, key: str, bundle_root: str | os.PathLike, conditional: bool = False) -> str:
    """Find the weights that a key stands for, and say which they are.

    Args:
        path: value of the key: ``auto`` stands for the weights that were trained here, if there are some, else the
            released ones.
        key: name of the key.
        bundle_root: the bundle's folder.
        conditional: whether a generator that knows conditions is meant.

    Returns:
        Path of the file.
    """
    if str(path) != "auto":
        return os.fspath(path)
    released, trained = (Path(bundle_root) / place for place in (CONDITIONAL if conditional else PLACES[key]))
    if trained.is_file():
        logger.info("%s: %s, trained here (--%s %s takes the released weights)", key, trained, key, released)
        return str(trained)
    logger.info("%s: %s, the released weights (there is no %s)", key, released, trained)
    return str(released)


def load_weights(network: nn.Module, path: str | os.PathLike, key: str) -> nn.Module:
    """Read a state dict into a network.

    Args:
        network: what to load into; it stays as it is when the file does not fit. If it has a method ``check_weights``,
            this is called with the weights first, and may say in the user's terms why they do not.
        path: the file to read.
        key: name of the setting that gave ``path``, for the errors.

    Returns:
        ``network``.

    Raises:
        SettingError: when the file is missing, is no readable state dict, or does not fit; it says how.
    """
    where = f"{key}={os.fspath(path)!r}"
    weights = read_state(path, where)
    if (check := getattr(network, "check_weights", None)) is not None:
        check(weights, where)
    differences = compare_states(weights, network.state_dict())
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise SettingError(f"{where}: does not fit the network of this config: {shown}.")
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise SettingError(f"{where}: {len(broken)} of its tensors hold NaN or infinity, {broken[0]} first.")
    network.load_state_dict(weights)
    return network


def read_state(path: str | os.PathLike, where: str) -> dict[str, torch.Tensor]:
    """Read a state dict; ``where`` begins the message of the ``SettingError`` that a missing or damaged file raises."""
    if not Path(path).is_file():
        raise SettingError(f"{where}: no such file; allowed is a file of weights that this bundle's training wrote.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a damaged file in half a dozen ways
        raise SettingError(f"{where}: not a readable file of weights: {tell_unreadable(error)}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise SettingError(f"{where}: not a state dict (a dictionary of tensors) of the network.")
    return weights


def tell_unreadable(error: Exception) -> str:
    """Tell why torch can't read a file; for one that holds objects, it would advise to load it unsafely."""
    told = (str(error).splitlines() or [type(error).__name__])[0]
    if "Weights only" not in told:
        return told
    if "Unsupported" in str(error):
        return "it holds something other than tensors, which could run code"
    return "it is no file that torch wrote, as the pointer that Git LFS leaves is none"


def compare_states(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Say how weights differ from those expected, in names and shapes."""
    differences = [f"lacks {name}" for name in expected if name not in weights]
    differences += [f"has {name}, which the network lacks" for name in weights if name not in expected]
    differences += [
        f"{name} has shape {tuple(weights[name].shape)}, the network's {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    return differences
