"""How a volume from a file becomes what the networks see."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    LoadImage,
    MapTransform,
    NormalizeIntensityd,
    Orientationd,
    ResizeWithPadOrCropd,
    Spacing,
)
from monai.utils import CommonKeys

from ..checks import SettingError


class LoadVolumed(MapTransform):
    """Loads one channel of a volume, channel first, float32, with its metadata; voxels that are not finite become 0.

    Args:
        keys: as for every dictionary transform of MONAI's; items hold the path of a file.
        channel: which channel of a file of several.

    Raises:
        SettingError: when called, if a file can't be read (headers may be fine, and what follows cut off), or lacks
            the channel.
    """

    def __init__(self, keys: str | Sequence[str] = CommonKeys.IMAGE, channel: int = 0) -> None:
        super().__init__(keys)
        self.channel = channel
        self.load = LoadImage(image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load the volumes of an item: each of shape (1, D, H, W)."""
        item = dict(data)
        for key in self.key_iterator(item):
            try:
                volume = self.load(item[key])
            except Exception as error:  # gzip, zlib, nibabel and MONAI each have their own
                raise SettingError(f"dataset_dir: {item[key]} can't be read as NIfTI: {error}") from error
            if self.channel >= len(volume):
                raise SettingError(f"channel={self.channel}: {item[key]} has channels 0 to {len(volume) - 1} alone.")
            item[key] = volume[self.channel : self.channel + 1].nan_to_num(0.0, 0.0, 0.0)
        return item


class ResampleVolumed(MapTransform):
    """Resamples by MONAI's ``Spacing``, of which the background has no part: voxels of exactly 0 stay out of the mean.

    Interpolated alone, a rim of values between the tissue's and 0 would surround what is not background, and would be
    taken for tissue. A voxel becomes background where most of its neighbourhood is. Volumes that have the spacing
    already stay as they are, bit for bit.

    Args:
        keys: as for every dictionary transform of MONAI's; items hold volumes with their metadata.
        pixdim: size of a voxel along each axis, in mm.
    """

    def __init__(self, keys: str | Sequence[str] = CommonKeys.IMAGE, pixdim: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__(keys)
        self.resample = Spacing(pixdim)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample the volumes (C, D, H, W) of an item."""
        item = dict(data)
        for key in self.key_iterator(item):
            weight = self.resample((item[key] != 0).to(item[key].dtype))
            item[key] = self.resample(item[key]) * ((weight > 0.5) / weight.clamp_min(0.5))
        return item


class ScanPreprocessing(Compose):
    """From the path of a scan to a volume with a background of exactly 0: a list of MONAI's transforms.

    Load, bring to RAS orientation and to ``spacing``, crop or pad about the centre, standardise the voxels other than
    0. An item ``{CommonKeys.IMAGE: path}`` becomes ``{CommonKeys.IMAGE: (1, size, size, size) float32}``.

    Args:
        image_size: voxels along each axis.
        spacing: size of a voxel along each axis, in mm.
        channel: which channel of a file of several.
        normalize: whether to standardise; else the values stay as they are.
    """

    def __init__(
        self,
        image_size: int,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        channel: int = 0,
        normalize: bool = True,
    ) -> None:
        keys = CommonKeys.IMAGE
        super().__init__(
            [
                LoadVolumed(keys, channel),
                Orientationd(keys, axcodes="RAS", labels=None),
                ResampleVolumed(keys, spacing),
                ResizeWithPadOrCropd(keys, spatial_size=[image_size] * 3),
                *([NormalizeIntensityd(keys, nonzero=True)] if normalize else []),
                EnsureTyped(keys, dtype=torch.float32, track_meta=False),
            ]
        )
