"""Volumes from files: a folder of NIfTI files as a dataset."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import torch
from monai.data import Dataset
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged
from monai.utils import CommonKeys

from .checks import SettingError


class FolderDataset(Dataset):
    """The NIfTI volumes of a folder (``*.nii``, ``*.nii.gz``), in the order of their names.

    An item is ``{CommonKeys.IMAGE: (1, size, size, size) float32}``, a plain tensor.

    Args:
        dataset_dir: the folder.
        size: voxels along each axis that every volume has to have.

    Raises:
        SettingError: when there is no such folder, it holds no NIfTI file, or a file is damaged or has another shape;
            the message names the folder or the file.
    """

    def __init__(self, dataset_dir: str | os.PathLike, size: int) -> None:
        folder = Path(str(dataset_dir))
        files = sorted(path for path in folder.glob("*.nii*") if path.name.endswith((".nii", ".nii.gz")))
        if not files:
            what = "holds no .nii or .nii.gz file" if folder.is_dir() else "no such folder"
            raise SettingError(f"dataset_dir={str(dataset_dir)!r}: {what}; must be a folder of NIfTI volumes.")
        for path in files:
            _check_shape(path, (size,) * 3)
        key = CommonKeys.IMAGE
        load = Compose(
            [
                _read,
                EnsureChannelFirstd(key, channel_dim="no_channel"),
                EnsureTyped(key, dtype=torch.float32, track_meta=False),
            ]
        )
        super().__init__([{key: str(path)} for path in files], load)


def _read(item: dict[str, str]) -> dict[str, torch.Tensor]:
    """Load an item's file; its header was fine, but what follows may be cut off."""
    try:
        return LoadImaged(CommonKeys.IMAGE, image_only=True)(item)
    except Exception as error:  # gzip, zlib, nibabel and MONAI each have their own
        raise SettingError(f"dataset_dir: {item[CommonKeys.IMAGE]} can't be read as NIfTI: {error}") from error


def _check_shape(path: Path, expected: tuple[int, ...]) -> None:
    """Read a file's header alone, so that the mistake in the last file shows before the first is scored."""
    try:
        shape = nibabel.load(path).shape  # type: ignore[attr-defined]
    except Exception as error:  # gzip, zlib and nibabel each have their own
        raise SettingError(f"dataset_dir: {path} can't be read as NIfTI: {error}") from error
    if shape != expected:
        raise SettingError(
            f"dataset_dir: {path} has the shape {shape}; must be {expected}, by image_size={expected[0]}."
        )
