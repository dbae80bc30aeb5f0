"""Which checkpoint a training carries on from, and whether it is one of the same settings."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..atomic import clear_partial
from ..checks import SettingError
from ..config import TRACKING, find_parser

logger = logging.getLogger(__name__)

# What does not change what is trained, or is part of no training.
UNRECORDED = {
    *("bundle_root", "output_dir", "ckpt_dir", "device", "num_workers", "verbose", "resume", "keep_checkpoints"),
    *("imports", "initialize", "run", "finalize", "_meta_", "_desc_"),
    *TRACKING,
}
# What can't change under way, whatever `resume` says: the data and their order, and the networks.
FIXED = ("train_size", "train_batch_size", "seed", "dataset_dir", "image_size", "law", "autoencoder_path")


class TrainingRecord:
    """The settings of the training that is being run, to be kept in its checkpoints.

    Attributes:
        values: each leaf of the config that matters, by its id (``loss#kl_weight``), as text; instead of the path of
            the autoencoder's weights, their digest.
    """

    def __init__(self) -> None:
        config = {key: value for key, value in find_parser().get().items() if key not in UNRECORDED}
        self.values = dict(_flatten(config))
        path = find_parser().get_parsed_content("autoencoder_path", default=None)
        if path is not None and Path(path).is_file():
            self.values["autoencoder_path"] = "sha256 " + hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]

    def state_dict(self) -> dict[str, str]:
        """Return the settings, for a checkpoint."""
        return self.values

    def load_state_dict(self, state_dict: Mapping[str, str]) -> None:
        """Keep the settings of this training, whatever a checkpoint says."""


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value.get("_target_") != "MLFlowHandler":
        for name, item in value.items():
            yield from _flatten(item, f"{key}#{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from _flatten(item, f"{key}#{i}")
    elif not isinstance(value, dict):
        # an object that a program has put in has no text of its own that would last
        plain = value is None or isinstance(value, bool | int | float | str | list)
        yield key, repr(value) if plain else type(value).__name__


def find_checkpoint(ckpt_dir: str | os.PathLike, resume: bool | str, record: TrainingRecord) -> Path | None:
    """Find the checkpoint that a training carries on from.

    Args:
        ckpt_dir: where the training writes its checkpoints.
        resume: ``auto`` carries on if the folder holds a training of these settings; ``True`` carries on with those
            settings changed that can change; ``False`` starts a new training.
        record: settings of the training that is about to start.

    Returns:
        The newest checkpoint that can be read, or ``None`` for a new training. A damaged one is set aside.

    Raises:
        SettingError: for ``auto``, if the folder holds a training of other settings; for ``True``, if it holds none or
            one whose data or networks are others; for ``False``, if it holds any.
    """
    resume = {"true": True, "false": False}.get(str(resume), resume)
    folder = Path(ckpt_dir)
    clear_partial(folder)
    found = list_checkpoints(folder)
    if resume is False:
        if found:
            raise SettingError(
                f"resume=False: {folder} holds checkpoints of a training ({found[0].name}); choose another "
                "output_dir or ckpt_dir for a new one, or remove them."
            )
        return None
    for path in found:
        try:
            # a GPU's tensors too: whether it can be read is all that counts here
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch reports a damaged file in half a dozen ways
            aside = path.rename(path.with_name(f"damaged-{path.name}"))
            logger.warning("%s can't be read (%s): set aside as %s", path, str(error).splitlines()[0], aside.name)
            continue
        _compare(checkpoint.get("record", {}), record.values, folder, resume)
        done = checkpoint["trainer"]["iteration"] // checkpoint["trainer"]["epoch_length"]
        if done > int(record.values.get("epochs", done)):
            raise SettingError(f"epochs={record.values['epochs']}: the training in {folder} has {done} already.")
        return path
    if resume is True:
        raise SettingError(f"resume=True: {folder} holds no checkpoint to carry on from; must be auto or false.")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """List a training's checkpoints, the furthest first."""
    return sorted(folder.glob("checkpoint_*.pt"), key=_progress, reverse=True)


def _progress(path: Path) -> tuple[int, int]:
    """Epochs and further iterations that a checkpoint's name tells: ``checkpoint_epoch=3[_iteration=17].pt``."""
    numbers = dict(part.split("=") for part in path.stem.split("_") if part.count("=") == 1)
    return int(numbers.get("epoch", 0)), int(numbers.get("iteration", 0))


def _compare(there: Mapping[str, str], here: Mapping[str, str], folder: Path, resume: bool | str) -> None:
    differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if resume is True:
        differing = [key for key in differing if key.split("#")[0] in FIXED or "_def#" in key]
    if differing:
        shown = ", ".join(
            f"{key} ({there.get(key, 'none')} there, {here.get(key, 'none')} here)" for key in differing[:5]
        )
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise SettingError(
            f"resume={resume!r}: {folder} holds a training of other settings: {shown}{more}. "
            + ("" if resume is True else "With resume=true it carries on, as far as these can change. ")
            + "Another output_dir starts a new one."
        )
