"""Volumes from files: which they are, and how they are split."""

from __future__ import annotations

import glob
import json
import logging
import os
from pathlib import Path

import nibabel
import torch
from monai.data import Dataset, load_decathlon_datalist, partition_dataset
from monai.transforms import Compose, EnsureTyped
from monai.utils import CommonKeys

from ..checks import SettingError
from .preprocessing import LoadVolumed

logger = logging.getLogger(__name__)

NIFTI = (".nii", ".nii.gz")
# The sections of a datalist of MONAI's, and of the Medical Segmentation Decathlon's.
SECTIONS = ("training", "validation", "test")


def list_volumes(dataset_dir: str | os.PathLike, size: int | None = None) -> dict[str, list[str]]:
    """Find the NIfTI volumes that the key ``dataset_dir`` stands for, and look at each one's header.

    Args:
        dataset_dir: a folder, whose ``*.nii`` and ``*.nii.gz`` are meant; a pattern, as ``scans/**/*_T1w.nii.gz``; or a
            datalist, a JSON file of MONAI's form ``{"training": [{"image": path}, ...], "validation": ..., "test":
            ...}``, the last two optional, paths relative to the file.
        size: voxels along each axis that every volume has to have; ``None`` takes volumes of any shape.

    Returns:
        Paths by section, ``training`` and, of a datalist alone, others of ``SECTIONS``; those of a folder or a pattern
        in the order of their names.

    Raises:
        SettingError: when there is no such folder, file or volume, a file is no NIfTI volume of 3 or 4 dimensions, or
            it has another size.
    """
    where = f"dataset_dir={os.fspath(dataset_dir)!r}"
    path = Path(dataset_dir)
    if path.suffix == ".json":
        sections = _read_datalist(path, where)
    elif path.is_dir() and os.fspath(dataset_dir):
        sections = {"training": sorted(str(file) for file in path.iterdir() if file.name.endswith(NIFTI))}
    elif glob.has_magic(str(path)):  # Path.glob takes no absolute pattern
        files = glob.glob(str(path), recursive=True)  # noqa: PTH207
        sections = {"training": sorted(file for file in files if file.endswith(NIFTI))}
    else:
        raise SettingError(f"{where}: no such folder; must be a folder, a pattern or a datalist of NIfTI volumes.")
    if not sections["training"]:
        found = f"holds no file (further down, try '{path}/**/*.nii.gz')" if path.is_dir() else "matches no file"
        raise SettingError(f"{where}: {found}; must be a folder, a pattern or a datalist of .nii or .nii.gz volumes.")
    for files in sections.values():
        for file in files:
            _check_shape(file, size)
    return sections


def _read_datalist(path: Path, where: str) -> dict[str, list[str]]:
    try:
        present = [name for name in SECTIONS if json.loads(path.read_text()).get(name)]
        if "training" not in present:
            raise ValueError("it has no 'training' volumes")
        sections = {name: load_decathlon_datalist(path, is_segmentation=False, data_list_key=name) for name in present}
        for name, items in sections.items():
            if not all(CommonKeys.IMAGE in item for item in items):
                raise ValueError(f"an item of {name!r} has no {str(CommonKeys.IMAGE)!r}")
        return {name: [os.fspath(item[CommonKeys.IMAGE]) for item in items] for name, items in sections.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingError(
            f"{where}: not a readable datalist ({error}); must be JSON of the form "
            '{"training": [{"image": "a.nii.gz"}, ...]}.'
        ) from error


def _check_shape(file: str, size: int | None) -> None:
    """Read a NIfTI file's header alone, so that a mistake in the last file shows before the first is used."""
    try:
        shape: tuple[int, ...] = nibabel.load(file).shape  # type: ignore[attr-defined]
    except Exception as error:  # gzip, zlib and nibabel each have their own
        raise SettingError(f"dataset_dir: {file} can't be read as NIfTI: {error}") from error
    if len(shape) not in (3, 4) or 0 in shape:
        raise SettingError(f"dataset_dir: {file} has the shape {shape}; must be a volume, with or without channels.")
    if size is not None and shape != (size,) * 3:
        raise SettingError(f"dataset_dir: {file} has the shape {shape}; must be {(size,) * 3}, by image_size={size}.")


def split_volumes(
    dataset_dir: str | os.PathLike, seed: int = 0, fraction: float = 0.1
) -> dict[str, list[dict[str, str]]]:
    """Split volumes into training, validation and test sets, the same ones wherever the seed is the same.

    Args:
        dataset_dir: as for ``list_volumes``. A datalist's own sections stay as they are. Empty for no volumes at all.
        seed: of the shuffling.
        fraction: share of the volumes for validation, and as many for the test; at least one each.

    Returns:
        Items ``{CommonKeys.IMAGE: path}`` by ``SECTIONS``.

    Raises:
        SettingError: as ``list_volumes``, or when there are too few volumes for a set each.
    """
    if not os.fspath(dataset_dir):
        return {name: [] for name in SECTIONS}
    sections = list_volumes(dataset_dir)
    missing = [name for name in SECTIONS if name not in sections]
    volumes = sections["training"]
    held_out = max(1, round(fraction * len(volumes)))
    counts = [len(volumes) - len(missing) * held_out] + [held_out] * len(missing)
    if counts[0] < 1:
        raise SettingError(
            f"dataset_dir={os.fspath(dataset_dir)!r}: {len(volumes)} volumes to train from; must be at least "
            f"{1 + len(missing)}, for {', '.join(missing)} take one each."
        )
    parts = partition_dataset(volumes, ratios=counts, shuffle=True, seed=seed) if missing else [volumes]
    sections |= dict(zip(["training", *missing], parts, strict=True))
    counted = ", ".join(f"{len(sections[name])} {name}" for name in SECTIONS)
    logger.info("%d volumes of %s: %s", sum(map(len, sections.values())), dataset_dir, counted)
    return {name: [{CommonKeys.IMAGE: path} for path in sections[name]] for name in SECTIONS}


class FolderDataset(Dataset):
    """Volumes as they are, to be scored: an item is ``{CommonKeys.IMAGE: (1, size, size, size) float32}``.

    Args:
        dataset_dir: as for ``list_volumes``; of a datalist, the training volumes.
        size: voxels along each axis that every volume has to have.

    Raises:
        SettingError: as ``list_volumes``; the message names the folder or the file.
    """

    def __init__(self, dataset_dir: str | os.PathLike, size: int) -> None:
        files = list_volumes(dataset_dir, size)["training"]
        transform = Compose([LoadVolumed(), EnsureTyped(CommonKeys.IMAGE, dtype=torch.float32, track_meta=False)])
        super().__init__([{CommonKeys.IMAGE: file} for file in files], transform)
