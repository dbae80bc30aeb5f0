"""How close a set of volumes is to the law: a line for each statistic, beside real spheres and a limit."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from monai.utils import CommonKeys
from scipy import stats
from torch.utils.data import Dataset

from .measurement import PARAMETERS, explain_invalid, measure_spheres
from .spheres import SphereLaw

logger = logging.getLogger(__name__)

# A perfect generator goes beyond a limit with this probability at most, for each Kolmogorov-Smirnov statistic and for
# each of the 15 rank correlations. At 1,000 volumes that allows 0.06 and 0.1; fewer volumes tell less.
ERROR_RATE = 0.002

# What a set of volumes has to meet whatever its size. The statistics of the values in a ball rest on tens of thousands
# of voxels each; a perfect generator's are far below these from a few volumes on.
VALID_SHARE = 0.99
KS, RANK_CORRELATION = 0.06, 0.1
RIM_FADE = 0.05
TEXTURE = {
    "kurtosis": 0.05,
    "autocorrelation_x": 0.01,
    "autocorrelation_y": 0.01,
    "autocorrelation_z": 0.01,
    "normal_ks": 0.01,
    "rim_mean": 0.02,
    "rim_std": 0.02,
    "background": 0.0,
}


def standardise(measured: Mapping[str, np.ndarray], law: SphereLaw) -> dict[str, np.ndarray]:
    """Scale the parameters so that each is uniform on (0, 1) under the law, independent of the others.

    Args:
        measured: arrays of shape (N,) under ``r``, ``cx``, ``cy``, ``cz``, ``a``, ``b``.
        law: the true distribution.

    Returns:
        Arrays of shape (N,) under the same names; a coordinate of the centre becomes (c - r) / (size - 2 r). NaN for
        what is not known, or fixed by the law.
    """
    result = {}
    for name in PARAMETERS:
        if name.startswith("c"):
            low, high = measured["r"], law.size - measured["r"]
        else:
            low, high = getattr(law, f"{name}_min"), getattr(law, f"{name}_max")
        width = np.where(high == low, np.nan, high - low)
        result[name] = (measured[name] - low) / width
    return result


def make_line(value: float, limit: float | None = None, least: bool = False, **more: Any) -> dict[str, Any]:
    """Make a statistic's line: value, limit, whether it holds; ``least`` if the value may not be below the limit."""
    result: dict[str, Any] = {"value": float(value), **more}
    if limit is not None:
        ok = value >= limit if least else abs(value) <= limit
        result |= {"limit": float(limit), "least": least, "ok": bool(ok)}
    return result


def score_parameters(measured: Mapping[str, np.ndarray], law: SphereLaw) -> dict[str, dict[str, Any]]:
    """Test measured spheres against the law.

    Args:
        measured: arrays of shape (N,), as ``SphereMetric`` gives them.
        law: the true distribution.

    Returns:
        Lines by name, each with ``value``, mostly a ``limit`` and ``ok``, and more:

        - ``valid``: share of valid spheres (see ``explain_invalid``), with the ``reasons`` of the others counted;
        - ``ks_r``, ``ks_cx``, ...: Kolmogorov-Smirnov statistic of each parameter, scaled as ``standardise`` does,
          with its ``p_value`` and the ``count`` of volumes it rests on;
        - ``rank_correlation``: the largest of Spearman's correlations between two such parameters, with its ``pair``;
        - one for each entry of ``TEXTURE``: the mean over the volumes, with its ``standard_error``;
        - ``rim_fade``: how much of ``a`` the rim gains or lacks, the slope of its shift on ``a``, with its
          ``standard_error``.

        A line that can't be had from so few volumes, or of a parameter that the law fixes, is left out.
    """
    reasons = explain_invalid(measured, law)
    valid = make_line(
        reasons.count("") / len(reasons),
        VALID_SHARE,
        least=True,
        reasons=dict(Counter(reason.partition(":")[0] for reason in reasons if reason)),
    )
    uniform = {name: values for name, values in standardise(measured, law).items() if np.isfinite(values).any()}
    return {
        "valid": valid,
        "dice_median": make_line(np.median(measured["dice"])),
        **_score_marginals(uniform),
        **_score_independence(uniform),
        **_score_texture(measured),
    }


def score_volumes(volumes: Dataset, law: SphereLaw) -> dict[str, dict[str, Any]]:
    """Measure volumes, (1, D, H, W) under ``CommonKeys.IMAGE``, and test them; returns ``score_parameters``'s lines."""
    rows = [measure_spheres(volumes[i][CommonKeys.IMAGE][None]) for i in range(len(volumes))]  # type: ignore[arg-type]
    return score_parameters({name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}, law)


def _score_marginals(uniform: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    lines = {}
    for name, values in uniform.items():
        values = values[np.isfinite(values)]
        test = stats.kstest(values, "uniform")
        limit = max(KS, float(stats.kstwo.isf(ERROR_RATE, len(values))))
        lines[f"ks_{name}"] = make_line(test.statistic, limit, p_value=float(test.pvalue), count=len(values))
    return lines


def _score_independence(uniform: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    filled = np.isfinite(list(uniform.values())).all(axis=0)
    n = int(filled.sum())
    if len(uniform) < 2 or n < 2:
        return {}
    pairs = {
        (first, second): float(stats.spearmanr(uniform[first][filled], uniform[second][filled]).statistic)
        for first, second in itertools.combinations(uniform, 2)
    }
    # a parameter that never varies has no rank; its line above says so
    pair = max(pairs, key=lambda pair: abs(np.nan_to_num(pairs[pair])))
    # under independence Spearman's correlation is normal with variance 1 / (n - 1), near enough
    limit = max(RANK_CORRELATION, float(stats.norm.isf(ERROR_RATE / 2)) / math.sqrt(n - 1))
    return {"rank_correlation": make_line(np.nan_to_num(pairs[pair]), limit, pair=list(pair), count=n)}


def _score_texture(measured: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    filled = np.isfinite(measured["rim_mean"])
    if not filled.any():
        return {}
    lines = {}
    for name, limit in TEXTURE.items():
        values = measured[name][filled]
        lines[name] = make_line(values.mean(), limit, standard_error=float(values.std() / math.sqrt(len(values))))
    # A decoder that fades at the surface shifts the rim against the sign of a, which cancels in the mean over volumes.
    a, b, voxels = (measured[name][filled] for name in ("a", "b", "voxels"))
    square = (a**2).sum()
    slope = (a * b * measured["rim_mean"][filled]).sum() / square
    # each half of a ball has half of its voxels: their means differ by 2 b / sqrt(voxels)
    error = float(np.sqrt((4 * (a * b) ** 2 / voxels).sum()) / square)
    limit = max(RIM_FADE, float(stats.norm.isf(ERROR_RATE / 2)) * error)
    return lines | {"rim_fade": make_line(slope, limit, standard_error=error)}


def score_diversity(
    volumes: Dataset, reference: Dataset, data_range: float, count: int = 50, seed: int = 0
) -> dict[str, dict[str, Any]]:
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
    return {"mmd": make_line(mmd), "ms_ssim": make_line(ssim.aggregate().item())}  # type: ignore[union-attr]


LABELS = {
    "valid": "valid spheres, share",
    "dice_median": "Dice with the fitted ball, median",
    "ks_r": "KS of r",
    "ks_cx": "KS of (cx - r) / (size - 2 r)",
    "ks_cy": "KS of (cy - r) / (size - 2 r)",
    "ks_cz": "KS of (cz - r) / (size - 2 r)",
    "ks_a": "KS of a",
    "ks_b": "KS of b",
    "rank_correlation": "largest rank correlation",
    "kurtosis": "excess kurtosis",
    "autocorrelation_x": "lag-1 autocorrelation, x",
    "autocorrelation_y": "lag-1 autocorrelation, y",
    "autocorrelation_z": "lag-1 autocorrelation, z",
    "normal_ks": "KS of the values from N(a, b^2)",
    "rim_mean": "rim less centre: mean, in b",
    "rim_std": "rim over centre: deviation, less 1",
    "rim_fade": "rim less centre: mean, in a",
    "background": "background other than 0, share",
    "mmd": "MMD (linear kernel) to real volumes",
    "ms_ssim": "multi-scale SSIM between volumes",
    "classifier": "classifier's held-out accuracy",
}


def describe_line(line: Mapping[str, Any]) -> str:
    """Put what is known beside a line's value into words."""
    if "p_value" in line:
        return f"p = {line['p_value']:.3f}"
    if "pair" in line:
        return " with ".join(line["pair"])
    if "standard_error" in line:
        return f"standard error {line['standard_error']:.4f}"
    if "low" in line:
        return f"95% interval {line['low']:.3f} to {line['high']:.3f}"
    return ""


def format_table(scored: Mapping[str, Mapping[str, Any]], real: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out lines beside those of real spheres, one statistic a row."""
    rows = [f"{'':<36} {'volumes':>9} {'real':>9} {'limit':>9}"]
    for name, label in LABELS.items():
        if name not in scored:
            continue
        line = scored[name]
        floor = f"{real[name]['value']:>9.4f}" if name in real else f"{'':>9}"
        limit = f"{'>=' if line['least'] else '<='} {line['limit']:.4f}" if "limit" in line else ""
        verdict = "" if "ok" not in line else "ok" if line["ok"] else "FAILS"
        row = f"{label:<36} {line['value']:>9.4f} {floor} {limit:>9}  {verdict:<5}  {describe_line(line)}"
        rows.append(row.rstrip())
    return "\n".join(rows)


def write_fidelity(
    path: str | os.PathLike,
    scored: Sequence[Mapping[str, Mapping[str, Any]]],
    real: Sequence[Mapping[str, Mapping[str, Any]]],
    reconstruction: Mapping[str, float],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write an evaluation as JSON and log it as a table.

    Args:
        path: the file to write; its folder is made.
        scored: lines of the volumes that were scored, as ``score_parameters`` and others return them.
        real: the same statistics of real volumes.
        reconstruction: metrics of the autoencoder on held-out volumes; empty when there is none.
        settings: what the evaluation was run with.

    Returns:
        What was written: ``settings``, ``reconstruction``, ``volumes`` and ``real`` (lines by name), and ``failed``,
        the names of the lines that go beyond their limit.
    """
    merged = {name: dict(line) for lines in scored for name, line in lines.items()}
    floor = {name: dict(line) for lines in real for name, line in lines.items()}
    result = {
        "settings": dict(settings),
        "reconstruction": dict(reconstruction),
        "volumes": merged,
        "real": floor,
        "failed": [name for name, line in merged.items() if not line.get("ok", True)],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=2) + "\n")
    untested, reasons = [], ""
    if "valid" in merged:  # else these are no spheres, and no law is known
        untested = [name for name in (*(f"ks_{name}" for name in PARAMETERS), "rank_correlation") if name not in merged]
        reasons = ", ".join(f"{reason} ({count})" for reason, count in merged["valid"]["reasons"].items())
    verdict = f"beyond their limit: {', '.join(result['failed'])}" if result["failed"] else "every limit tested holds"
    logger.info(
        "fidelity\n%s\n%s%s%ssaved to %s",
        format_table(merged, floor),
        f"not valid: {reasons}\n" if reasons else "",
        f"not tested: {', '.join(untested)}\n" if untested else "",
        f"{verdict}\n" if any("limit" in line for line in merged.values()) else "",
        path,
    )
    return result
