"""How much a set of volumes differs from real ones, and its volumes from each other; no law is needed."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from .lines import Line


def score_diversity(
    volumes: Dataset, reference: Dataset, data_range: float, count: int = 50, seed: int = 0
) -> dict[str, Line]:
    """Compare two sets of volumes by their maximum mean discrepancy, and a set with itself by multi-scale SSIM.

    Args:
        volumes: items with volumes (1, D, H, W) under ``CommonKeys.IMAGE``.
        reference: real ones, alike.
        data_range: range of the values, for SSIM.
        count: how many volumes, and how many pairs of them, to use at most.
        seed: picks the volumes.

    Returns:
        Lines without a limit, to be read beside those of real spheres: ``mmd``, between the sets, by MONAI's
        ``MMDMetric`` on volumes averaged over blocks of 4^3 voxels (its kernel is linear: it compares mean volumes);
        ``ms_ssim``, the mean over pairs within ``volumes`` (1 for a generator that always returns the same).
    """
    rng = np.random.default_rng(seed)
    count = min(count, len(volumes), len(reference))  # type: ignore[arg-type]
    if count < 2:
        return {}
    first, second = (
        torch.stack([dataset[int(i)][CommonKeys.IMAGE] for i in rng.permutation(len(dataset))[:count]])  # type: ignore[arg-type]
        .float()
        .nan_to_num()
        for dataset in (volumes, reference)
    )
    pool = torch.nn.AvgPool3d(min(4, *first.shape[2:]))
    mmd = MMDMetric()(pool(second), pool(first)).item()
    # three of the usual five scales, two of volumes below 28 voxels: the coarsest must still hold the window
    weights = (0.2, 0.4, 0.4) if min(first.shape[2:]) >= 28 else (0.5, 0.5)
    ssim = MultiScaleSSIMMetric(spatial_dims=3, data_range=data_range, kernel_size=7, weights=weights)
    for i in range(count):
        ssim(first[i : i + 1], first[(i + 1) % count][None])
    return {"mmd": Line(mmd), "ms_ssim": Line(ssim.aggregate().item())}  # type: ignore[union-attr]
