"""The parameters of a sphere, measured from a volume alone, and how a set of them compares with the law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats

from .spheres import SphereLaw

PARAMETERS = ("r", "cx", "cy", "cz", "a", "b")


def measure_spheres(volumes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measure each volume by the moments of its support, the voxels that are not exactly 0.

    The radius is that of the ball with the support's number of voxels, the centre is the support's centroid, ``a`` and
    ``b`` are the mean and standard deviation of the values in it.

    Args:
        volumes: shape (B, 1, D, H, W).

    Returns:
        Tensors of shape (B,), float64: ``r``, ``cx``, ``cy``, ``cz`` (voxels), ``a``, ``b``, and ``dice``, the overlap
        of the support with the ball so measured: 1 for a ball. An empty volume has NaN everywhere but ``r`` = 0 and
        ``dice`` = 0.
    """
    support = volumes[:, 0] != 0
    spatial = (1, 2, 3)
    count = support.sum(dim=spatial).double()
    r = (count * 3 / (4 * math.pi)) ** (1 / 3)

    centre, distance2 = [], torch.zeros_like(support, dtype=torch.float32)
    for axis, size in enumerate(support.shape[1:], start=1):
        position = torch.arange(size, device=volumes.device) + 0.5
        profile = support.sum(dim=[other for other in spatial if other != axis]).double()
        centre.append((profile * position).sum(dim=1) / count)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        distance2 = distance2 + (position.view(shape) - centre[-1].float().view(-1, 1, 1, 1)) ** 2
    ball = distance2 <= (r.float() ** 2).view(-1, 1, 1, 1)
    overlap = (ball & support).sum(dim=spatial).double()
    total = ball.sum(dim=spatial) + count
    dice = torch.where(count > 0, 2 * overlap / total.clamp_min(1), 0.0)

    values = volumes[:, 0].double()
    a = values.sum(dim=spatial) / count
    squares = (support * (values - a.view(-1, 1, 1, 1)) ** 2).sum(dim=spatial)
    b = (squares / (count - 1)).sqrt()
    return {"r": r, "cx": centre[0], "cy": centre[1], "cz": centre[2], "a": a, "b": b, "dice": dice}


def concatenate(batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Join what ``measure_spheres`` returned for several batches into arrays of shape (N,)."""
    return {name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in batches[0]}


def compare_with_law(measured: Mapping[str, np.ndarray], law: SphereLaw) -> dict[str, dict[str, float]]:
    """Compare measured parameters with the law: each of them is uniform once scaled to its range.

    Args:
        measured: arrays of shape (N,) under ``r``, ``cx``, ``cy``, ``cz``, ``a``, ``b``, as ``measure_spheres`` gives.
        law: the true distribution.

    Returns:
        For each parameter ``mean`` and ``std`` as measured, ``law_mean`` and ``law_std`` of its uniform law, and the
        Kolmogorov-Smirnov statistic ``ks`` with its ``p_value``. Each coordinate of the centre is scaled to
        (c - r) / (size - 2 r), which is uniform on (0, 1). Volumes without a measure are left out.
    """
    result = {}
    for name in PARAMETERS:
        if name.startswith("c"):
            values = (measured[name] - measured["r"]) / (law.size - 2 * measured["r"])
            low, high = 0.0, 1.0
        else:
            values, low, high = measured[name], getattr(law, f"{name}_min"), getattr(law, f"{name}_max")
        values = values[np.isfinite(values)]
        if len(values) == 0:
            continue
        uniform = stats.uniform(low, high - low)
        test = stats.kstest(values, uniform.cdf)
        result[name] = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "law_mean": float(uniform.mean()),
            "law_std": float(uniform.std()),
            "ks": float(test.statistic),
            "p_value": float(test.pvalue),
        }
    return result
