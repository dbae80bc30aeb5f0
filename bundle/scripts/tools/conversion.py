"""Weights of MONAI's networks for those of the older ``monai-generative`` package, and the other way round."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from monai.networks.blocks import SABlock
from torch import nn

from ..checks import SettingError
from ..weights import compare_states, read_state, write_state

logger = logging.getLogger(__name__)


def match_names(core: nn.Module, generative: nn.Module) -> dict[str, str | None]:
    """Find which tensor of a network of ``monai-generative``'s is which of MONAI's network of the same shape.

    MONAI's networks know how to load the older package's weights (``load_old_state_dict``), not which name became
    which, nor the way back. So each old tensor is filled with a number of its own, and where it arrives is read off.

    Args:
        core: MONAI's network, or a module that holds such networks; it stays as it is.
        generative: the other package's, with the same modules under the same names.

    Returns:
        For each name in the state dict of ``generative`` that in the state dict of ``core``; ``None`` for a projection
        after an attention (``proj_attn``) that MONAI's network was made without.

    Raises:
        ValueError: when another tensor has no counterpart.
    """
    names: dict[str, str | None] = {name: name for name in generative.state_dict()}
    for prefix, module in core.named_modules():
        if hasattr(module, "load_old_state_dict"):
            old, new = generative.get_submodule(prefix).state_dict(), copy.deepcopy(module)
            numbered = {name: torch.full_like(tensor, i) for i, (name, tensor) in enumerate(old.items())}
            with contextlib.redirect_stdout(None):  # MONAI prints when all names match
                new.load_old_state_dict(numbered)
            dot = f"{prefix}." if prefix else ""
            arrived = {int(tensor.flatten()[0]): dot + name for name, tensor in new.state_dict().items()}
            names |= {dot + name: arrived.get(i) for i, name in enumerate(old)}
    unused = [name for name, new_name in names.items() if new_name is None]
    if sorted(filter(None, names.values())) != sorted(core.state_dict()) or not all("proj_attn" in x for x in unused):
        raise ValueError("the networks do not have the same shape.")
    return names


def _projections(core: nn.Module) -> Iterator[tuple[str, str]]:
    """Name the value and the output projections of each attention that has an output projection."""
    for name, module in core.named_modules():
        if isinstance(module, SABlock) and module.include_fc:
            if module.num_heads > 1:
                raise SettingError(
                    f"{name}: an attention of {module.num_heads} heads with an output projection (include_fc) has no "
                    "counterpart in monai-generative, whose attention applies none; allowed is include_fc=false."
                )
            yield f"{name}.to_v", f"{name}.out_proj"


def _to_generative(
    weights: Mapping[str, torch.Tensor], core: nn.Module, generative: nn.Module
) -> dict[str, torch.Tensor]:
    """Fold the output projections into the values' and rename.

    The older package holds a projection after each attention and never applies it. With one head, attention is a
    weighted mean of values, the weights adding up to 1, so that projecting the values instead changes nothing.
    """
    folded = dict(weights)
    for value, output in _projections(core):
        # in float32, whatever the file's type: a product of rounded numbers is rounded once, not twice
        w, b = (weights[f"{output}.{kind}"].float() for kind in ("weight", "bias"))
        folded[f"{value}.bias"] = w @ weights[f"{value}.bias"].float() + b
        folded[f"{value}.weight"] = w @ weights[f"{value}.weight"].float()
        folded[f"{output}.weight"], folded[f"{output}.bias"] = torch.eye(len(w)), torch.zeros_like(b)
    unused = {
        name: torch.eye(*x.shape) if x.ndim == 2 else torch.zeros_like(x) for name, x in generative.state_dict().items()
    }
    return {name: unused[name] if new is None else folded[new] for name, new in match_names(core, generative).items()}


def _to_core(weights: Mapping[str, torch.Tensor], core: nn.Module, generative: nn.Module) -> dict[str, torch.Tensor]:
    """Rename; projections that were never applied become ones that change nothing."""
    renamed = {new: weights[name] for name, new in match_names(core, generative).items() if new is not None}
    for _, output in _projections(core):
        renamed[f"{output}.weight"] = torch.eye(len(renamed[f"{output}.weight"]))
        renamed[f"{output}.bias"] = torch.zeros_like(renamed[f"{output}.bias"])
    return renamed


def convert_weights(
    path: str | os.PathLike, output_path: str | os.PathLike, pairs: Sequence[tuple[nn.Module, nn.Module]]
) -> None:
    """Rewrite weights of MONAI's networks for those of ``monai-generative``, or the other way round.

    Args:
        path: the file to read.
        output_path: the file to write.
        pairs: networks of MONAI's, each with its counterpart; the file is one of these networks'.

    Raises:
        SettingError: when the file can't be read or fits none of the networks.
    """
    where = f"model_path={os.fspath(path)!r}"
    weights = read_state(path, where)
    for core, generative in pairs:
        for network, convert, maker, user in (
            (core, _to_generative, "MONAI", "monai-generative"),
            (generative, _to_core, "monai-generative", "MONAI"),
        ):
            if not compare_states(weights, network.state_dict()):
                write_state(convert(weights, core, generative), output_path)
                logger.info("%s holds weights of %s; saved for %s as %s", path, maker, user, output_path)
                return
    raise SettingError(f"{where}: fits neither MONAI's nor monai-generative's networks of this config.")
