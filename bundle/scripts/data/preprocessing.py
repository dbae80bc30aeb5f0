"""How a volume from a file becomes what the networks see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    Lambdad,
    NormalizeIntensity,
    Orientation,
    ResizeWithPadOrCrop,
    SelectItemsd,
    Spacing,
    SpatialCrop,
)
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from ..checks import SettingError
from .volumes import VolumeReader

logger = logging.getLogger(__name__)

# Least share of voxels of exactly 0 below which a volume has no such background.
LEAST_BACKGROUND = 0.01

# The volumes below are MONAI's ``MetaTensor``. Its transforms are annotated to return plain tensors, hence ``Any``.


def take_window(volume: Any, window: Sequence[float] | None) -> Any:
    """Map values to a background of exactly 0: clip them to a window and take its lower end away.

    Args:
        volume: shape (1, D, H, W), with its metadata.
        window: lower and upper end, as (-1000, 1000) for a CT in Hounsfield units, whose air then is background;
            ``None`` leaves the values as they are.

    Raises:
        SettingError: if no voxel is other than background, or all are the same.
    """
    if window is not None:
        low, high = window
        volume = volume.clamp(low, high) - low
    share = float((volume == 0).float().mean())
    if share == 1:
        raise SettingError(f"dataset_dir: {_name(volume)} holds nothing other than background (window={window}).")
    if volume.min() == volume.max():
        raise SettingError(f"dataset_dir: {_name(volume)} holds one value alone, {float(volume.min()):g}.")
    if share < LEAST_BACKGROUND:
        logger.warning(
            "%s: %.1f%% of its voxels are exactly 0, which is the model's background; values go from %g to %g. "
            "The key window maps another background to 0",
            _name(volume),
            100 * share,
            float(volume.min()),
            float(volume.max()),
        )
    return volume


def resample(volume: Any, spacing: Spacing) -> Any:
    """Resample a volume without a part of the background in it: voxels of exactly 0 stay out of the mean.

    Interpolated alone, a rim of values between the tissue's and 0 would surround what is not background, and would be
    taken for tissue. A voxel becomes background where most of its neighbourhood is. A volume that has the spacing
    already stays as it is, bit for bit.

    Args:
        volume: shape (1, D, H, W), with its metadata.
        spacing: MONAI's transform.

    Raises:
        SettingError: if nothing but background is left.
    """
    weight = spacing((volume != 0).to(volume.dtype))
    resampled = spacing(volume) * ((weight > 0.5) / weight.clamp_min(0.5))
    if not resampled.any():
        raise SettingError(f"dataset_dir: at this spacing {_name(volume)} holds nothing other than background.")
    return resampled


def crop_to_cube(volume: Any, size: int, crop: str) -> Any:
    """Crop or pad a volume to a cube, about its centre or about that of what is not background.

    Args:
        volume: shape (1, D, H, W), with voxels other than background.
        size: voxels along each axis.
        crop: ``center`` or ``foreground``.
    """
    cut = volume
    if crop == "foreground":
        # the box at the centre of what is not background, as large as the cube if it can be
        places = (volume[0] != 0).nonzero().float()
        middle = ((places.amin(0) + places.amax(0)) / 2).round().long().tolist()
        cut = SpatialCrop(roi_center=middle, roi_size=[size] * 3)(volume)
    cropped: Any = ResizeWithPadOrCrop([size] * 3)(cut)
    lost = 1 - int((cropped != 0).sum()) / int((volume != 0).sum())
    if lost > 0.01:
        remedy = "a larger spacing or image_size" + ("" if crop == "foreground" else ", or crop=foreground,")
        logger.warning(
            "%s: cropping cuts off %.0f%% of what is not background; %s keeps more", _name(volume), 100 * lost, remedy
        )
    return cropped


def standardise(volume: Any) -> Any:
    """Standardise the voxels other than 0 by MONAI's ``NormalizeIntensity``; leave values that are all the same.

    Standardised, a mask of ones would become nothing but background.
    """
    values = volume[volume != 0]
    if len(values) and values.min() < values.max():
        return NormalizeIntensity(nonzero=True)(volume)
    logger.warning("%s: its values other than 0 are all the same; they stay as they are", _name(volume))
    return volume


def _name(volume: Any) -> str:
    return volume.meta.get("filename_or_obj", "a volume")


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
    Other fields of a datalist are dropped, for not every item need have them, and a batch can't be made of such.

    Args:
        image_size: voxels along each axis.
        spacing: size of a voxel along each axis, in mm.
        channel: which channel of a file of several.
        window: see ``take_window``.
        crop: see ``crop_to_cube``.
        normalize: whether to standardise; else the values stay as they are.
        fields: those to be kept, where an item has them.
    """

    def __init__(
        self,
        image_size: int,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        channel: int = 0,
        window: Sequence[float] | None = None,
        crop: str = "center",
        normalize: bool = True,
        fields: Sequence[str] = (),
    ) -> None:
        steps: list[Callable] = [
            VolumeReader(channel, background=window[0] if window else 0.0),
            partial(take_window, window=window),
            Orientation(axcodes="RAS", labels=None),
            partial(resample, spacing=Spacing(spacing, dtype=np.float32)),  # its float64 takes twice the memory
            partial(crop_to_cube, size=image_size, crop=crop),
            *([standardise] if normalize else []),
        ]
        keys = CommonKeys.IMAGE
        plain = EnsureTyped(keys, dtype=torch.float32, track_meta=False)
        kept = SelectItemsd([keys, *fields], allow_missing_keys=True)
        super().__init__([*(Lambdad(keys, step) for step in steps), plain, kept])
