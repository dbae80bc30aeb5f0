"""Files of volumes: which they are, and how they are split into sets."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import load_decathlon_datalist, partition_dataset
from monai.utils import CommonKeys

from ..checks import SettingError

logger = logging.getLogger(__name__)

NIFTI = (".nii", ".nii.gz")
# The sections of a datalist of MONAI's, and of the Medical Segmentation Decathlon's.
SECTIONS = ("training", "validation", "test")


def list_volumes(dataset_dir: str | os.PathLike, size: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Find the NIfTI volumes that the key ``dataset_dir`` stands for, and look at each one's header.

    Args:
        dataset_dir: a folder, whose ``*.nii`` and ``*.nii.gz`` are meant; a pattern, as ``scans/**/*_T1w.nii.gz``; or a
            datalist, a JSON file of MONAI's form ``{"training": [{"image": path}, ...], "validation": ..., "test":
            ...}``, the last two optional, paths relative to the file.
        size: voxels along each axis that every volume has to have; ``None`` takes volumes of any shape.

    Returns:
        Items ``{CommonKeys.IMAGE: path}`` by section, ``training`` and, of a datalist alone, others of ``SECTIONS``;
        those of a folder or a pattern in the order of their names, those of a datalist with their other fields.

    Raises:
        SettingError: when there is no such folder, file or volume, a file is no NIfTI volume of 3 or 4 dimensions, or
            it has another size.
    """
    where = f"dataset_dir={os.fspath(dataset_dir)!r}"
    path = Path(dataset_dir)
    if path.suffix == ".json":
        sections = _read_datalist(path, where)
    elif path.is_dir() and os.fspath(dataset_dir):
        sections = {"training": _make_items(map(str, path.iterdir()))}
    elif glob.has_magic(str(path)):  # Path.glob takes no absolute pattern
        sections = {"training": _make_items(glob.glob(str(path), recursive=True))}  # noqa: PTH207
    else:
        raise SettingError(f"{where}: no such folder; must be a folder, a pattern or a datalist of NIfTI volumes.")
    if not sections["training"]:
        found = f"holds no file (further down, try '{path}/**/*.nii.gz')" if path.is_dir() else "matches no file"
        raise SettingError(f"{where}: {found}; must be a folder, a pattern or a datalist of .nii or .nii.gz volumes.")
    for items in sections.values():
        for item in items:
            _check_header(item[CommonKeys.IMAGE], size)
    return sections


def _make_items(files: Iterable[str]) -> list[dict[str, Any]]:
    """Make items of those files that are volumes, in the order of their names.

    Hidden files are none, such as those that macOS puts beside each (``._a.nii.gz``).
    """
    volumes = (file for file in files if file.endswith(NIFTI) and not Path(file).name.startswith("."))
    return [{CommonKeys.IMAGE: file} for file in sorted(volumes)]


def _read_datalist(path: Path, where: str) -> dict[str, list[dict[str, Any]]]:
    try:
        present = [name for name in SECTIONS if json.loads(path.read_text()).get(name)]
        if "training" not in present:
            raise ValueError("it has no 'training' volumes")
        sections = {name: load_decathlon_datalist(path, is_segmentation=False, data_list_key=name) for name in present}
        for name, items in sections.items():
            if not all(CommonKeys.IMAGE in item for item in items):
                raise ValueError(f"an item of {name!r} has no {str(CommonKeys.IMAGE)!r}")
        return {
            name: [{**item, CommonKeys.IMAGE: os.fspath(item[CommonKeys.IMAGE])} for item in items]
            for name, items in sections.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingError(
            f"{where}: not a readable datalist ({error}); must be JSON of the form "
            '{"training": [{"image": "a.nii.gz"}, ...]}.'
        ) from error


def _check_header(file: str, size: int | None) -> None:
    """Read a NIfTI file's header alone, so that a mistake in the last file shows before the first is used."""
    try:
        image: Any = nibabel.load(file)
        shape: tuple[int, ...] = image.shape
        affine, kind = image.affine, image.get_data_dtype().kind
    except Exception as error:  # gzip, zlib and nibabel each have their own
        raise SettingError(f"dataset_dir: {file} can't be read as NIfTI: {error}") from error
    if not (len(shape) in (3, 4) or (len(shape) == 5 and shape[3] == 1)) or 0 in shape:
        raise SettingError(f"dataset_dir: {file} has the shape {shape}; must be a volume, with or without channels.")
    if kind not in "biuf":
        raise SettingError(
            f"dataset_dir: {file} holds values of the kind {image.get_data_dtype()}; must be real numbers."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise SettingError(
            f"dataset_dir: {file} has no usable orientation: its affine is {np.asarray(affine)[:3].tolist()}; mend its "
            "header (qform, sform, voxel sizes)."
        )
    if 1 in shape[:3]:
        raise SettingError(f"dataset_dir: {file} has the shape {shape}; must be a volume, and one slice is none.")
    if size is not None and shape != (size,) * 3:
        raise SettingError(f"dataset_dir: {file} has the shape {shape}; must be {(size,) * 3}, by image_size={size}.")


def split_volumes(
    dataset_dir: str | os.PathLike, seed: int = 0, fraction: float = 0.1, required: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Split volumes into training, validation and test sets, the same ones wherever the seed is the same.

    Args:
        dataset_dir: as for ``list_volumes``. A datalist's own sections stay as they are; its volumes with the same
            ``group``, as those of one patient, come into the same set. Empty for no volumes at all.
        seed: of the shuffling.
        fraction: share of the volumes for validation, and as many for the test; at least one each.
        required: whether there have to be volumes.

    Returns:
        Items ``{CommonKeys.IMAGE: path}`` by ``SECTIONS``.

    Raises:
        SettingError: as ``list_volumes``, or when there are too few volumes, or groups, for a set each.
    """
    if not os.fspath(dataset_dir) and not required:
        return {name: [] for name in SECTIONS}
    sections = list_volumes(dataset_dir)
    missing = [name for name in SECTIONS if name not in sections]
    volumes = sections["training"]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for i, item in enumerate(volumes):
        group = item.get("group")
        groups.setdefault(i if group is None else str(group), []).append(item)
    if missing and len(groups) <= len(missing):
        what = "volumes" if len(groups) == len(volumes) else "groups of volumes"
        raise SettingError(
            f"dataset_dir={os.fspath(dataset_dir)!r}: {len(groups)} {what} to train from; must be at least "
            f"{1 + len(missing)}, for {', '.join(missing)} take one each."
        )
    held_out = max(1, round(fraction * len(groups)))
    counts = [len(groups) - len(missing) * held_out] + [held_out] * len(missing)
    parts = partition_dataset(list(groups.values()), ratios=counts, shuffle=True, seed=seed)
    sections |= {
        name: [item for group in part for item in group]
        for name, part in zip(["training", *missing], parts, strict=True)
    }
    counted = ", ".join(f"{len(sections[name])} {name}" for name in SECTIONS)
    logger.info("%d volumes of %s: %s", sum(map(len, sections.values())), dataset_dir, counted)
    return {name: sections[name] for name in SECTIONS}
