"""How much a set of volumes differs from real ones, and its volumes from each other; no law is needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from monai.utils import CommonKeys
from scipy import stats
from torch.utils.data import Dataset

from .lines import ERROR_RATE, Line


def _read(volumes: Dataset, indices: Iterable[int]) -> Iterator[torch.Tensor]:
    """Read volumes, each (1, D, H, W), with numbers alone."""
    return (volumes[int(i)][CommonKeys.IMAGE].float().nan_to_num() for i in indices)


def _average_blocks(volumes: torch.Tensor) -> torch.Tensor:
    """Average volumes (..., D, H, W) over blocks of 4^3 voxels."""
    return F.avg_pool3d(volumes, min(4, *volumes.shape[-3:]))


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
    places: list[Iterable[int]] = [rng.permutation(len(dataset))[:count] for dataset in sets[:2]]  # type: ignore[arg-type]
    places.append(range(len(training)))  # type: ignore[arg-type]
    # one volume at a time, for its blocks are a small part of it
    generated, unseen, seen = (
        torch.stack([_average_blocks(volume).flatten() for volume in _read(dataset, indices)])
        for dataset, indices in zip(sets, places, strict=True)
    )
    generated, unseen = (torch.cdist(blocks, seen).amin(dim=1) for blocks in (generated, unseen))
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
        torch.stack([*_read(dataset, rng.permutation(len(dataset))[:count])])  # type: ignore[arg-type]
        for dataset in (volumes, reference)
    )
    mmd = MMDMetric()(_average_blocks(second), _average_blocks(first)).item()
    # three of the usual five scales, two of volumes below 28 voxels: the coarsest must still hold the window
    weights = (0.2, 0.4, 0.4) if min(first.shape[2:]) >= 28 else (0.5, 0.5)
    ssim = MultiScaleSSIMMetric(spatial_dims=3, data_range=data_range, kernel_size=7, weights=weights)
    for i in range(count):
        ssim(first[i : i + 1], first[(i + 1) % count][None])
    return {"mmd": Line(mmd), "ms_ssim": Line(ssim.aggregate().item())}  # type: ignore[union-attr]
