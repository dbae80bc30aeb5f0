"""Volumes read from files, and datasets of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import Compose, EnsureTyped, Lambdad, LoadImage, SelectItemsd
from monai.utils import CommonKeys
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from ..checks import SettingError
from .files import list_volumes

logger = logging.getLogger(__name__)

# Millimetres in the units of length that a NIfTI header can name; nameless ones are taken for millimetres.
UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


class VolumeReader:
    """Reads one channel of a volume from a file, channel first, float32, with its metadata.

    Args:
        channel: which channel of a file of several.
        background: what voxels become that are not finite; ``None`` leaves them.

    Raises:
        SettingError: when called, if a file can't be read (headers may be fine, and what follows cut off), lacks the
            channel, or holds nothing finite where a background takes its place.
    """

    def __init__(self, channel: int = 0, background: float | None = 0.0) -> None:
        self.channel = channel
        self.background = background
        self.load = LoadImage(image_only=True, ensure_channel_first=True)

    def __call__(self, file: str) -> MetaTensor:
        """Read a file: shape (1, D, H, W)."""
        try:
            header: Any = nibabel.load(file).header
            with np.errstate(over="ignore"):  # what float32 can't hold is reported below
                volume: Any = self.load(file)
        except Exception as error:  # gzip, zlib, nibabel and MONAI each have their own
            raise SettingError(f"dataset_dir: {file} can't be read as NIfTI: {error}") from error
        if volume.ndim == 5:  # x, y, z, time 1, channel
            volume = volume[..., 0]
        if self.channel >= len(volume):
            raise SettingError(f"channel={self.channel}: {file} has channels 0 to {len(volume) - 1} alone.")
        volume = volume[self.channel : self.channel + 1]
        volume.affine[:3] *= UNITS[header.get_xyzt_units()[0]]
        if self.background is None:
            return volume
        if not volume.isfinite().any():
            raise SettingError(f"dataset_dir: {file} holds no value that is finite.")
        if volume.isinf().any():
            count = int(volume.isinf().sum())
            logger.warning("%s: %d values beyond the range of float32 became background", file, count)
        return volume.nan_to_num(*[self.background] * 3)


class FolderDataset(Dataset):
    """Volumes as they are, to be scored: an item is ``{CommonKeys.IMAGE: (1, size, size, size) float32}``.

    Voxels that are not finite stay so, and make their volume an invalid one.

    Args:
        dataset_dir: as for ``list_volumes``; of a datalist, the training volumes.
        size: voxels along each axis that every volume has to have.

    Raises:
        SettingError: as ``list_volumes``; the message names the folder or the file.
    """

    def __init__(self, dataset_dir: str | os.PathLike, size: int) -> None:
        read = Lambdad(CommonKeys.IMAGE, VolumeReader(background=None))
        plain = EnsureTyped(CommonKeys.IMAGE, dtype=torch.float32, track_meta=False)
        transform = Compose([read, plain, SelectItemsd(CommonKeys.IMAGE)])
        super().__init__(list_volumes(dataset_dir, size)["training"], transform)


class CachedVolumes(CacheDataset):
    """MONAI's ``CacheDataset``, whose threads have ended when a file that can't be read ends the loading.

    MONAI's own run on behind the error, and the interpreter, which exits under them, aborts.
    """

    def _fill_cache(self, indices: Iterable[int] | None = None) -> list[Any]:
        places = range(self.cache_num) if indices is None else list(indices)
        with ThreadPoolExecutor(self.num_workers) as pool:
            items = pool.map(self._load_cache_item, places)
            return list(tqdm(items, "loading", len(places), leave=False, disable=not places))


class RepeatedDataset(TorchDataset):
    """A dataset gone through as often as an epoch of a given length asks for.

    So a training takes as many steps on a hundred scans as on thousands.

    Args:
        dataset: the volumes, or their latents.
        length: items of an epoch.
    """

    def __init__(self, dataset: TorchDataset, length: int) -> None:
        self.dataset = dataset
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index % len(self.dataset)]  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Return the items of a batch, at once if the dataset can."""
        places = [index % len(self.dataset) for index in indices]  # type: ignore[arg-type]
        at_once = getattr(self.dataset, "__getitems__", None)
        return at_once(places) if at_once else [self.dataset[place] for place in places]
