"""Why a measured volume is no sphere of the law."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..data.spheres import SphereLaw

# Least overlap (Dice) of a support with the ball that is fitted to it.
LEAST_DICE = 0.97


def explain_invalid(measured: Mapping[str, np.ndarray], law: SphereLaw) -> list[str]:
    """Say of each volume why it is no sphere of the law.

    Args:
        measured: arrays of shape (N,), as ``measure_dataset`` gives them.
        law: the true distribution; its bounds of radius and centre must be met within half a voxel. (``a`` and ``b``
            have no unit in voxels; their whole distribution is tested instead.)

    Returns:
        For each volume the first reason that holds, or an empty text for a valid sphere.
    """
    rows = [dict(zip(measured, row, strict=True)) for row in np.stack(list(measured.values()), axis=1)]
    return [_explain(row, law) for row in rows]


def _explain(row: Mapping[str, float], law: SphereLaw) -> str:
    if row["voxels"] == 0:
        return "empty: every voxel is 0"
    if not (math.isfinite(row["a"]) and math.isfinite(row["b"])):
        return "not finite: voxels that are NaN or infinite"
    if row["voxels"] > 0.9 * law.size**3:  # the largest ball of the grid fills 0.52 of it
        return "no background: voxels other than 0 everywhere"
    if row["components"] > 1:
        return f"separate parts: {row['components']:.0f}"
    if row["dice"] < LEAST_DICE:
        return f"no ball: Dice {row['dice']:.3f} with the fitted one, below {LEAST_DICE}"
    slack = 0.5
    if not law.r_min - slack <= row["r"] <= law.r_max + slack:
        return f"radius outside [{law.r_min:g}, {law.r_max:g}]: {row['r']:.2f}"
    for axis in "xyz":
        if not row["r"] - slack <= row[f"c{axis}"] <= law.size - row["r"] + slack:
            return f"not wholly inside the grid along {axis}: centre {row[f'c{axis}']:.2f}, radius {row['r']:.2f}"
    return ""
