"""What a user may set: each key's rule, checked before any work starts, with one clear error for a mistake."""

from __future__ import annotations

import inspect
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser


class PlainError(Exception):
    """An error whose message alone tells the user what happened; the command line shows no traceback of it."""


class SettingError(PlainError, ValueError):
    """A user's mistake: the message names the key, the value and what is allowed."""


def is_integer(value: Any) -> bool:
    """Tell an integer, of Python or numpy, from everything else, booleans included."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell a finite real number from everything else, booleans included."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_writable(path: Any) -> bool:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        return False
    # The folder itself is made by whoever writes first; here its nearest existing ancestor has to take a file.
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_spacing(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(is_number(x) and x > 0 for x in value)


_POSITIVE_INTEGER = (lambda value: is_integer(value) and value > 0, "a positive integer")
_COUNT = (lambda value: is_integer(value) and value >= 0, "an integer of at least 0")
_WRITABLE = (_is_writable, "a folder that can be made and written to")

RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "image_size",
            "epochs",
            "train_size",
            "val_size",
            "test_size",
            "train_batch_size",
            "val_batch_size",
            "encode_batch_size",
            "val_interval",
            "num_samples",
            "sample_batch_size",
            "num_inference_steps",
            "num_train_timesteps",
            "diversity_size",
            "classifier_epochs",
            "preview_size",
            "benchmark_size",
            "latent_stride",
            "unet_stride",
            "training_volumes",
        ),
        _POSITIVE_INTEGER,
    ),
    **dict.fromkeys(("seed", "split_seed", "num_workers", "channel"), _COUNT),
    "lr": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "kl_weight": (lambda value: is_number(value) and value >= 0, "a number of at least 0"),
    **dict.fromkeys(("normalize", "verbose"), (lambda value: isinstance(value, bool), "true or false")),
    # the command line makes a text of true
    "resume": (lambda value: value in (True, False, "auto", "true", "false"), "auto, true or false"),
    "keep_checkpoints": (
        lambda value: value is None or (is_integer(value) and value > 0),
        "null (every one stays) or a positive integer",
    ),
    "spacing": (_is_spacing, "three numbers above 0, the size of a voxel in mm along x, y and z"),
    # what of these is there, scripts.environment tells
    "device": (lambda value: True, "a device of this machine"),
    "precision": (lambda value: isinstance(value, str), "auto, float32, bf16 or float16"),
    **dict.fromkeys(
        ("autoencoder_path", "model_path"),
        (lambda value: isinstance(value, (str, os.PathLike)), "the path of a file of weights"),
    ),
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

# Keys whose value may not exceed another's, where both are given, and how to name that one to the user.
LIMITS = (
    ("train_batch_size", "train_size", "train_size={}"),
    ("train_batch_size", "training_volumes", "the {} to train from"),
    ("num_inference_steps", "num_train_timesteps", "num_train_timesteps={}"),
)


def check_settings(**settings: Any) -> dict[str, Any]:
    """Check keys against their rules.

    Args:
        settings: keys that a user may override, as ``RULES`` names them, and their values.

    Returns:
        The settings.

    Raises:
        SettingError: at the first value that breaks a rule, that exceeds the key it is limited by, or that the
            networks' strides do not divide.
    """
    for key, value in settings.items():
        is_allowed, allowed = RULES[key]
        if not is_allowed(value):
            raise SettingError(f"{key}={value!r}: must be {allowed}.")
    for key, limit, name in LIMITS:
        if key in settings and limit in settings and settings[key] > settings[limit]:
            raise SettingError(f"{key}={settings[key]}: must be at most {name.format(settings[limit])}.")
    # A convolution of stride 2 halves even sizes alone; an odd one would come back from the decoder another size.
    stride = settings.get("latent_stride", 1) * settings.get("unet_stride", 1)
    if "image_size" in settings and settings["image_size"] % stride:
        raise SettingError(
            f"image_size={settings['image_size']}: must be a multiple of {stride}, the strides of the networks "
            f"multiplied (latent_stride * unet_stride)."
        )
    return settings


def check_config() -> dict[str, Any]:
    """Check every key at the top of the config that is being run, before any work, if it has a rule.

    From then on a mistake that is found later ends the command line with its message alone, as one found here does.

    Returns:
        Those keys and their values.

    Raises:
        SettingError: as ``check_settings``.
    """
    report_mistakes_plainly()
    parser = find_parser()
    # an overlay for several configs (smoke.json) has keys that this one knows nothing of: checked all the same
    return check_settings(**{key: parser.get_parsed_content(key) for key in parser.get() if key in RULES})


def find_parser() -> ConfigParser:
    """Find the parser of the config that is being run.

    MONAI hands a component its own arguments and nothing of the config around it; but the parser stands further up on
    the call stack, for it is what makes the component.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    raise RuntimeError("no config is being run.")


def _find_mistake(error: BaseException | None) -> PlainError | None:
    while error is not None and not isinstance(error, PlainError):
        error = error.__cause__ or error.__context__
    return error


def on_command_line() -> bool:
    """Tell whether the process is ``python -m monai.bundle``, and not a program that runs a workflow itself."""
    program = getattr(sys.modules.get("__main__"), "__spec__", None)
    return program is not None and program.name == "monai.bundle.__main__"


def report_mistakes_plainly() -> None:
    """Let an uncaught ``PlainError`` end ``python -m monai.bundle`` with its message alone.

    MONAI's config parser wraps whatever a component raises in errors of its own; the user's mistake would stand
    somewhere above two tracebacks. A program that runs a workflow itself catches what it likes, and keeps its own hook.
    """
    if not on_command_line():
        return
    earlier = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        mistake = _find_mistake(error)
        if mistake is None:
            earlier(kind, error, traceback)
        else:
            print(f"error: {mistake}", file=sys.stderr)

    sys.excepthook = show
