"""How much a set of volumes differs from real ones, and its volumes from each other; no law is needed."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from monai.utils import CommonKeys
from scipy import stats
from torch.utils.data import Dataset

from .lines import ERROR_RATE, Line


def _average_blocks(volumes: Dataset, indices: np.ndarray) -> torch.Tensor:
    """Average volumes over blocks of 4^3 voxels: (N, voxels)."""
    items = (volumes[int(i)][CommonKeys.IMAGE].float().nan_to_num() for i in indices)
    return torch.stack([torch.nn.functional.avg_pool3d(item, min(4, *item.shape[1:])).flatten() for item in items])


def score_copies(
    volumes: Dataset, held_out: Dataset, training: Dataset, count: int = 50, seed: int = 0
) -> dict[str, Line]:
    """Test whether a model returns copies of the volumes that it was trained on.

    A volume's distance is that to the nearest training volume, both averaged over blocks of 4^3 voxels. The generated
    volumes' distances are compared with those of held-out ones, by the test of Mann and Whitney (Meehan et al. 2020, A
    non-parametric test to detect data-copying in generative models, section 3.1).

    Args:
        volumes: items with volumes (1, D, H, W) under ``CommonKeys.IMAGE``.
        held_out: real volumes that the training did not see, alike.
        training: those that it saw, alike; all are used.
        count: how many generated and held-out volumes to use at most.
        seed: picks them.

    Returns:
        ``copies``: the probability that a generated volume is nearer to the training set than a held-out one: 0.5 for
        a perfect model, 1 for copies; with the ``p_value`` of the test against more than 0.5. Empty without volumes.
    """
    sets = (volumes, held_out, training)
    if not all(len(dataset) for dataset in sets):  # type: ignore[arg-type]
        return {}
    rng = np.random.default_rng(seed)
    picked = [rng.permutation(len(dataset))[:count] for dataset in sets[:2]]  # type: ignore[arg-type]
    seen = _average_blocks(training, np.arange(len(training)))  # type: ignore[arg-type]
    generated, unseen = (
        torch.cdist(_average_blocks(dataset, indices), seen).amin(dim=1).numpy()
        for dataset, indices in zip(sets[:2], picked, strict=True)
    )
    n, m = len(generated), len(unseen)
    test = stats.mannwhitneyu(generated, unseen, alternative="less")
    # without copies the share is normal with this variance, near enough
    limit = 0.5 + float(stats.norm.isf(ERROR_RATE)) * math.sqrt((n + m + 1) / (12 * n * m))
    return {"copies": Line(1 - float(test.statistic) / (n * m), p_value=float(test.pvalue), count=n, limit=limit)}


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
