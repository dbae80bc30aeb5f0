"""How a volume from a file becomes what the networks see."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureTyped,
    MapTransform,
    NormalizeIntensity,
    Orientationd,
    ResizeWithPadOrCrop,
    Spacing,
    SpatialCrop,
)
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from ..checks import SettingError
from .volumes import LoadVolumed

logger = logging.getLogger(__name__)

# Least share of voxels of exactly 0 below which a volume has no such background.
LEAST_BACKGROUND = 0.01


class Windowd(MapTransform):
    """Maps values to a background of exactly 0: clips them to a window and takes its lower end away.

    Args:
        keys: as for every dictionary transform of MONAI's.
        window: lower and upper end, as (-1000, 1000) for a CT in Hounsfield units, whose air then is background;
            ``None`` leaves the values as they are.

    Raises:
        SettingError: when called, if no voxel is other than background, or all are the same.
    """

    def __init__(self, keys: str | Sequence[str] = CommonKeys.IMAGE, window: Sequence[float] | None = None) -> None:
        super().__init__(keys)
        self.window = window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map the volumes of an item."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = item[key]
            file = volume.meta.get("filename_or_obj", "a volume")
            if self.window is not None:
                low, high = self.window
                volume = volume.clamp(low, high) - low
            share = float((volume == 0).float().mean())
            if share == 1:
                raise SettingError(f"dataset_dir: {file} holds nothing other than background (window={self.window}).")
            if volume.min() == volume.max():
                raise SettingError(f"dataset_dir: {file} holds one value alone, {float(volume.min()):g}.")
            if share < LEAST_BACKGROUND:
                logger.warning(
                    "%s: %.1f%% of its voxels are exactly 0, which is the model's background; values go from %g to %g. "
                    "The key window maps another background to 0",
                    file,
                    100 * share,
                    float(volume.min()),
                    float(volume.max()),
                )
            item[key] = volume
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
        self.resample = Spacing(pixdim, dtype=np.float32)  # its float64 takes twice the memory

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample the volumes (C, D, H, W) of an item."""
        item = dict(data)
        for key in self.key_iterator(item):
            weight = self.resample((item[key] != 0).to(item[key].dtype))
            item[key] = self.resample(item[key]) * ((weight > 0.5) / weight.clamp_min(0.5))
        return item


class CropVolumed(MapTransform):
    """Crops or pads volumes to a cube, about their centre or about that of what is not background.

    Args:
        keys: as for every dictionary transform of MONAI's.
        size: voxels along each axis.
        crop: ``center`` or ``foreground``.

    Raises:
        SettingError: when called, if there is nothing but background.
    """

    def __init__(self, keys: str | Sequence[str] = CommonKeys.IMAGE, size: int = 64, crop: str = "center") -> None:
        super().__init__(keys)
        self.crop = crop
        self.size = size
        self.fit = ResizeWithPadOrCrop([size] * 3)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop or pad the volumes (C, D, H, W) of an item."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = item[key]
            file = volume.meta.get("filename_or_obj", "a volume")
            before = int((volume != 0).sum())
            if before == 0:
                raise SettingError(f"dataset_dir: at this spacing {file} holds nothing other than background.")
            cropped = self.fit(self._center(volume) if self.crop == "foreground" else volume)
            lost = 1 - int((cropped != 0).sum()) / before
            if lost > 0.01:
                remedy = "a larger spacing or image_size" + (
                    "" if self.crop == "foreground" else ", or crop=foreground,"
                )
                logger.warning(
                    "%s: cropping cuts off %.0f%% of what is not background; %s keeps more", file, 100 * lost, remedy
                )
            item[key] = cropped
        return item

    def _center(self, volume: MetaTensor) -> torch.Tensor:
        """Cut the box out that is at the centre of what is not background, as large as the cube if it can be."""
        places = (volume[0] != 0).nonzero().float()
        middle = ((places.amin(0) + places.amax(0)) / 2).round().long().tolist()
        return SpatialCrop(roi_center=middle, roi_size=[self.size] * 3)(volume)


class Standardised(MapTransform):
    """MONAI's ``NormalizeIntensity`` of the voxels other than 0; values that are all the same stay as they are.

    Standardised, a mask of ones would become nothing but background.
    """

    def __init__(self, keys: str | Sequence[str] = CommonKeys.IMAGE) -> None:
        super().__init__(keys)
        self.standardise = NormalizeIntensity(nonzero=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Standardise the volumes of an item."""
        item = dict(data)
        for key in self.key_iterator(item):
            values = item[key][item[key] != 0]
            if len(values) and values.min() < values.max():
                item[key] = self.standardise(item[key])
            else:
                file = item[key].meta.get("filename_or_obj", "a volume")
                logger.warning("%s: its values other than 0 are all the same; they stay as they are", file)
        return item


def check_range(dataset: Dataset, data_range: float) -> None:
    """Refuse a ``data_range`` that the values of the first volume exceed; SSIM and PSNR would mean nothing.

    Args:
        dataset: items with a volume under ``CommonKeys.IMAGE``.
        data_range: range of the values, for SSIM and the peak signal-to-noise ratio.

    Raises:
        SettingError: when 98% of the volume's voxels other than 0 span more than that.
    """
    volume = torch.as_tensor(dataset[0][CommonKeys.IMAGE])
    values = volume[volume != 0].numpy()
    low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (0.0, 0.0)
    if high - low > data_range:
        raise SettingError(
            f"data_range={data_range:g}: the values of dataset_dir go from {low:g} to {high:g}; must be about their "
            "range, or normalize true."
        )


class ScanPreprocessing(Compose):
    """From the path of a scan to a volume with a background of exactly 0: a list of transforms.

    Load, map the background to 0, bring to RAS orientation and to ``spacing``, crop or pad, standardise the voxels
    other than 0. An item ``{CommonKeys.IMAGE: path}`` becomes ``{CommonKeys.IMAGE: (1, size, size, size) float32}``.

    Args:
        image_size: voxels along each axis.
        spacing: size of a voxel along each axis, in mm.
        channel: which channel of a file of several.
        window: see ``Windowd``.
        crop: see ``CropVolumed``.
        normalize: whether to standardise; else the values stay as they are.
    """

    def __init__(
        self,
        image_size: int,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        channel: int = 0,
        window: Sequence[float] | None = None,
        crop: str = "center",
        normalize: bool = True,
    ) -> None:
        keys = CommonKeys.IMAGE
        super().__init__(
            [
                LoadVolumed(keys, channel, background=window[0] if window else 0.0),
                Windowd(keys, window),
                Orientationd(keys, axcodes="RAS", labels=None),
                ResampleVolumed(keys, spacing),
                CropVolumed(keys, image_size, crop),
                *([Standardised(keys)] if normalize else []),
                EnsureTyped(keys, dtype=torch.float32, track_meta=False),
            ]
        )
