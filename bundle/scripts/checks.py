"""What a user may set: the rule of each key, and the error that says what is wrong with a value."""

from __future__ import annotations

import difflib
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple


class PlainError(Exception):
    """An error whose message alone tells the user what happened; the command line shows no traceback of it."""


class SettingError(PlainError, ValueError):
    """A user's mistake: the message names the key, the value and what is allowed."""


def require(condition: bool, message: str) -> None:
    """Raise ``SettingError`` with a message unless a condition of a config holds."""
    if not condition:
        raise SettingError(message)


def is_integer(value: Any) -> bool:
    """Tell an integer, of Python or numpy, from everything else, booleans included."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell a finite real number from everything else, booleans included."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def suggest(name: str, names: Iterable[str]) -> str:
    """End a sentence about a name that is unknown: with the nearest of the known ones, if one is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _is_writable(path: Any) -> bool:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        return False
    # The folder itself is made by whoever writes first; here its nearest existing ancestor has to take a file.
    folder = Path(path).absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_numbers(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count and all(map(is_number, value))


def _is_spacing(value: Any) -> bool:
    return _is_numbers(value, 3) and min(value) > 0


def _is_request(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and is_number(value[key]) for key in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value)


_POSITIVE_INTEGER = (lambda value: is_integer(value) and value > 0, "a positive integer")
_COUNT = (lambda value: is_integer(value) and value >= 0, "an integer of at least 0")
_WRITABLE = (_is_writable, "a folder that can be made and written to, as text (./2024 and not 2024)")
_RESUME = ("auto", "true", "false")

RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "image_size",
            "epochs",
            "train_size",
            "encode_size",
            "val_size",
            "test_size",
            "train_batch_size",
            "accumulation_steps",
            "val_batch_size",
            "encode_batch_size",
            "val_interval",
            "num_samples",
            "sample_batch_size",
            "network_batch_size",
            "num_inference_steps",
            "num_train_timesteps",
            "diversity_size",
            "classifier_epochs",
            "preview_size",
            "benchmark_size",
            "sweep_steps",
            "block_size",
            "latent_block_size",
            "latent_stride",
            "unet_stride",
        ),
        _POSITIVE_INTEGER,
    ),
    **dict.fromkeys(("num_workers", "channel"), _COUNT),
    **dict.fromkeys(
        ("seed", "split_seed"),
        (lambda value: is_integer(value) and 0 <= value < 2**32, "an integer from 0 to 4294967295"),
    ),
    "data_range": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "ema_span": (lambda value: is_number(value) and 0 < value < 0.28, "a number above 0 and below 0.28"),
    **dict.fromkeys(("lr", "discriminator_lr"), (lambda value: is_number(value) and value > 0, "a number above 0")),
    **dict.fromkeys(
        ("kl_weight", "adversarial_weight"),
        (lambda value: is_number(value) and value >= 0, "a number of at least 0"),
    ),
    "adversarial_start": (lambda value: is_number(value) and 0 <= value <= 1, "a share of the steps, from 0 to 1"),
    **dict.fromkeys(
        ("normalize", "verbose", "generate", "activation_checkpointing"),
        (lambda value: isinstance(value, bool), "true or false"),
    ),
    # the command line makes a text of true
    "resume": (lambda value: isinstance(value, (bool, str)) and str(value).lower() in _RESUME, "auto, true or false"),
    "keep_checkpoints": (
        lambda value: value is None or (is_integer(value) and value > 0),
        "null (every one stays) or a positive integer",
    ),
    "decode_window": (
        lambda value: value is None or (is_integer(value) and value > 0),
        "null (a volume is decoded as a whole) or a positive integer",
    ),
    "window": (
        lambda value: value is None or (_is_numbers(value, 2) and value[0] < value[1]),
        "null or two numbers, the lower first: the values between background and the brightest",
    ),
    "crop": (lambda value: value in ("center", "foreground"), "center or foreground"),
    "latent_shape": (
        lambda value: _is_numbers(value, 4) and all(is_integer(n) and n > 0 for n in value),
        "four positive integers: channels, and size along each axis",
    ),
    "spacing": (_is_spacing, "three numbers above 0, the size of a voxel in mm along x, y and z"),
    # which of these is there, scripts.environment tells
    "device": (lambda value: str(value) != "auto", "cpu or cuda:0, or left out: a GPU if there is one"),
    "precision": (lambda value: isinstance(value, str), "auto, float32, bf16 or float16"),
    **dict.fromkeys(
        ("autoencoder_path", "model_path"),
        (lambda value: isinstance(value, (str, os.PathLike)), "the path of a file of weights"),
    ),
    "conditions": (
        lambda value: _are_names(value) and len({*value}) == len(value),
        "a list of names, none of them twice, as ['r', 'a']",
    ),
    "ask": (_is_request, "names and numbers, as {'r': 20, 'a': 0.3}"),
    "requests": (
        lambda value: isinstance(value, (str, os.PathLike)),
        "empty, or a CSV or JSON file with a row for each volume",
    ),
    "guidance": (lambda value: is_number(value) and value >= 0, "a number of at least 0; 1 is no guidance"),
    "output_dir": _WRITABLE,
    "ckpt_dir": _WRITABLE,
    "output_path": (
        lambda value: isinstance(value, (str, os.PathLike)) and _is_writable(Path(value).absolute().parent),
        "a file in a folder that can be made and written to",
    ),
    "dataset_dir": (
        lambda value: isinstance(value, (str, os.PathLike)),
        "empty, or a folder, a pattern or a datalist of NIfTI volumes",
    ),
}

# Arguments of components, whichever these are.
ARGUMENTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "norm_num_groups"), _POSITIVE_INTEGER),
    **dict.fromkeys(
        ("channels", "num_channels"),
        (lambda value: bool(value) and all(is_integer(n) and n > 0 for n in ensure_tuple(value)), "positive integers"),
    ),
    "spatial_dims": (lambda value: value == 3, "3"),
    "tolerance": (lambda value: is_number(value) and value >= 0, "a number of at least 0"),
}

# Keys whose value may not exceed another's, where both are given.
LIMITS = (
    ("train_batch_size", "train_size"),
    ("encode_size", "train_size"),
    ("num_inference_steps", "num_train_timesteps"),
)


def check_settings(given: Iterable[tuple[str, Any]], idle: Collection[str] = ()) -> dict[str, Any]:
    """Check keys against their rules.

    Args:
        given: keys that a user may override, as ``RULES`` names them, and their values; one is taken when those before
            it are seen to be right, for its value may be made of theirs.
        idle: keys among them that neither limit another nor are limited.

    Returns:
        The settings.

    Raises:
        SettingError: at the first value that breaks a rule, that exceeds the key it is limited by, or that the
            networks' strides do not divide.
    """
    settings = {}
    for key, value in given:
        is_allowed, allowed = RULES[key]
        if not is_allowed(value):
            raise SettingError(f"{key}={value!r}: must be {allowed}.")
        settings[key] = value
    for key, limit in LIMITS:
        if {key, limit} <= settings.keys() - {*idle} and settings[key] > settings[limit]:
            raise SettingError(f"{key}={settings[key]}: must be at most {limit}={settings[limit]}.")
    # A convolution of stride 2 halves even sizes alone; an odd one would come back from the decoder another size.
    stride = settings.get("latent_stride", 1) * settings.get("unet_stride", 1)
    if "image_size" in settings and settings["image_size"] % stride:
        raise SettingError(
            f"image_size={settings['image_size']}: must be a multiple of {stride}, the strides of the networks "
            f"multiplied (latent_stride * unet_stride)."
        )
    return settings
