"""What a training carries on from: the checkpoint, if it is one of the same settings, random numbers, curves."""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from ..atomic import clear_partial
from ..checks import SettingError
from ..record import RunRecord, describe, find_differences
from ..weights import tell_unreadable

logger = logging.getLogger(__name__)

# What can't change under way, whatever `resume` says: the data and their order, and the networks.
FIXED = (
    *("train_size", "encode_size", "train_batch_size", "seed", "image_size", "law", "autoencoder_path", "conditions"),
    *("dataset_dir", "split_seed", "channel", "spacing", "window", "crop", "normalize"),
)


def _is_fixed(key: str) -> bool:
    # another network or kind of optimizer can't take the state of the checkpoint
    return key.split("#")[0] in FIXED or "_def#" in key or key.endswith("optimizer#_target_")


def find_checkpoint(ckpt_dir: str | os.PathLike, resume: bool | str, record: RunRecord) -> Path | None:
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
            one whose data, networks or optimizers are others; for ``False``, if it holds any.
    """
    resume = {"true": True, "false": False}.get(str(resume).lower(), resume)
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
            # torch itself does not look at the checksums that it writes
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"its part {damaged} has another checksum")
            # a GPU's tensors too: whether it can be read is all that counts here
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch reports a damaged file in half a dozen ways
            aside = path.with_name(f"damaged-{path.name}")
            with contextlib.suppress(FileNotFoundError):  # another process may have set it aside
                path.rename(aside)
            logger.warning("%s can't be read (%s): set aside as %s", path, tell_unreadable(error), aside.name)
            continue
        try:
            done = checkpoint["trainer"]["iteration"] // checkpoint["trainer"]["epoch_length"]
            there = checkpoint["record"]
        except (AttributeError, KeyError, TypeError):
            raise SettingError(f"ckpt_dir: {path} is no checkpoint of this version of this bundle.") from None
        _compare(there, record.values, folder, resume)
        if done > int(record.values.get("epochs", done)):
            raise SettingError(f"epochs={record.values['epochs']}: the training in {folder} has {done} already.")
        return path
    if resume is True:
        raise SettingError(f"resume=True: {folder} holds no checkpoint to carry on from; must be auto or false.")
    return None


def is_complete(checkpoint: str | os.PathLike | None, epochs: int) -> bool:
    """Tell whether a checkpoint is the last of a training of so many epochs."""
    return checkpoint is not None and _progress(Path(checkpoint))[0] >= epochs


def list_checkpoints(folder: Path) -> list[Path]:
    """List a training's checkpoints, the furthest first."""
    return sorted(folder.glob("checkpoint_*.pt"), key=_progress, reverse=True)


def _progress(path: Path) -> tuple[int, int]:
    """Epochs and further iterations that a checkpoint's name tells: ``checkpoint_epoch=3[_iteration=17].pt``."""
    numbers = dict(part.split("=") for part in path.stem.split("_") if part.count("=") == 1)
    return int(numbers.get("epoch", 0)), int(numbers.get("iteration", 0))


def _compare(there: Mapping[str, str], here: Mapping[str, str], folder: Path, resume: bool | str) -> None:
    differences = find_differences(there, here)
    if resume is True:
        differences = {key: text for key, text in differences.items() if _is_fixed(key)}
    if differences:
        raise SettingError(
            f"resume={resume!r}: {folder} holds a training of other settings: {describe(differences)}. "
            + ("" if resume is True else "With resume=true it carries on, as far as these can change. ")
            + "Another output_dir starts a new one."
        )


class RandomState:
    """torch's random numbers in a checkpoint that was made within an epoch; ``EpochSeed`` makes them at each start."""

    def __init__(self) -> None:
        self.within_epoch = False
        self.device = torch.device("cpu")
        self.loaded: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state within an epoch, on a GPU that of its own too; nothing between two."""
        if not self.within_epoch:
            return {}
        on_gpu = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"state": torch.get_rng_state(), **on_gpu}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Keep the state for ``restore``."""
        self.loaded = {kind: state.cpu() for kind, state in state_dict.items()}

    def restore(self) -> None:
        """Go on with the random numbers of a state that was loaded."""
        torch.set_rng_state(self.loaded["state"])
        if "cuda" in self.loaded and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.loaded["cuda"], self.device)
        self.loaded = {}


class EventFiles:
    """TensorBoard's files in a checkpoint: how long each was, to cut off what a killed training wrote after it.

    Args:
        writer: writes to the folder of the files, and has one of its own there; ``None`` for no files.
    """

    def __init__(self, writer: SummaryWriter | None) -> None:
        self.writer = writer

    def state_dict(self) -> dict[str, int]:
        """Return the length of each file in bytes."""
        if self.writer is not None:
            self.writer.flush()
        return {path.name: path.stat().st_size for path in self._list()}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Cut the files to these lengths, and set others aside in the folder ``earlier``.

        Others are later ones, whose points are about to be made again, and those of another training.
        """
        own = self.writer.file_writer.event_writer._file_name if self.writer and self.writer.file_writer else ""
        for path in self._list():
            if path.name == Path(own).name:
                continue
            if path.name in state_dict:
                # after a power cut a file may be shorter than it was
                os.truncate(path, min(state_dict[path.name], path.stat().st_size))
            else:
                (path.parent / "earlier").mkdir(exist_ok=True)
                path.rename(path.parent / "earlier" / path.name)

    def _list(self) -> list[Path]:
        return sorted(Path(self.writer.log_dir).glob("events.out.tfevents.*")) if self.writer else []
