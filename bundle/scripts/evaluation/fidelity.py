"""How close a set of volumes is to the law: a line for each statistic."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import stats
from torch.utils.data import Dataset

from ..data.spheres import PARAMETERS, SphereLaw
from .classifier import classify_two_samples
from .diversity import score_copies, score_diversity
from .lines import ERROR_RATE, Line
from .measurement import measure_dataset
from .validity import explain_invalid

# What a set of volumes has to meet. All but the first get wider for few volumes (see ``_widen``).
VALID_SHARE = 0.997
RIM_FADE = 0.02
# Statistics of the values in a ball: the limit, and the variance in a true sphere times its number of voxels. With a
# variance of 0 the limit stays as it is: a true sphere of 64^3 is far below it.
TEXTURE: Mapping[str, tuple[float, float]] = {
    "kurtosis": (0.02, 24.0),
    "autocorrelation_x": (0.005, 1.0),
    "autocorrelation_y": (0.005, 1.0),
    "autocorrelation_z": (0.005, 1.0),
    "normal_ks": (0.01, 0.0),
    "rim_mean": (0.02, 4.0),  # each half of a ball has half of its voxels
    "rim_std": (0.02, 2.0),
    "background": (0.0, 0.0),
}


def _widen(limit: float, error: float) -> float:
    """Return the limit, or what a perfect generator exceeds once in 500 times where that is more.

    Args:
        limit: for so many volumes that chance plays no part.
        error: standard error of the statistic of a perfect generator, from as many volumes as there are.
    """
    return max(limit, float(stats.norm.isf(ERROR_RATE / 2)) * error)


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
            low, high = map(np.asarray, law.bounds(name))
        width = np.where(high == low, np.nan, high - low)
        result[name] = (measured[name] - low) / width
    return result


def score_parameters(measured: Mapping[str, np.ndarray], law: SphereLaw) -> dict[str, Line]:
    """Test measured spheres against the law.

    Args:
        measured: arrays of shape (N,), as ``measure_dataset`` gives them.
        law: the true distribution.

    Returns:
        Lines by name:

        - ``valid``: share of valid spheres (see ``explain_invalid``), with the ``reasons`` of the others counted;
        - ``dice_median``: overlap of the supports with their fitted balls;
        - ``ks_r``, ``ks_cx``, ...: Kolmogorov-Smirnov statistic of each parameter, scaled as ``standardise`` does,
          with its ``p_value`` and the ``count`` of volumes it rests on;
        - ``rank_correlation``: the largest of Spearman's correlations between two such parameters, with its ``pair``;
        - one for each entry of ``TEXTURE``: the mean over the volumes, with its ``standard_error``;
        - ``rim_fade``: how much of ``a`` the rim gains or lacks, the slope of its shift on ``a``, with its
          ``standard_error``.

        A line that can't be had from so few volumes, or of a parameter that the law fixes, is left out.
    """
    reasons = explain_invalid(measured, law)
    valid = Line(
        reasons.count("") / len(reasons),
        reasons=dict(Counter(reason.partition(":")[0] for reason in reasons if reason)),
        limit=VALID_SHARE,
        least=True,
    )
    uniform = {name: values for name, values in standardise(measured, law).items() if np.isfinite(values).any()}
    return {
        "valid": valid,
        "dice_median": Line(float(np.median(measured["dice"]))),
        **_score_marginals(uniform),
        **_score_independence(uniform),
        **_score_texture(measured),
    }


@lru_cache
def _limit_ks(error_rate: float, count: int) -> float:
    """Return what the statistic of so many true values exceeds at this rate; it is found by a search."""
    return float(stats.kstwo.isf(error_rate, count))


def _score_marginals(uniform: Mapping[str, np.ndarray]) -> dict[str, Line]:
    lines = {}
    for name, values in uniform.items():
        values = values[np.isfinite(values)]
        test = stats.kstest(values, "uniform")
        limit = _limit_ks(ERROR_RATE, len(values))
        lines[f"ks_{name}"] = Line(float(test.statistic), p_value=float(test.pvalue), count=len(values), limit=limit)
    return lines


def _score_independence(uniform: Mapping[str, np.ndarray]) -> dict[str, Line]:
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
    limit = _widen(0.0, 1 / math.sqrt(n - 1))
    return {"rank_correlation": Line(float(np.nan_to_num(pairs[pair])), pair=list(pair), count=n, limit=limit)}


def _score_texture(measured: Mapping[str, np.ndarray]) -> dict[str, Line]:
    filled = np.isfinite(measured["rim_mean"])
    if not filled.any():
        return {}
    lines = {}
    for name, (limit, variance) in TEXTURE.items():
        known = filled & np.isfinite(measured[name])  # a ball of one value has no deviation at its rim
        values, voxels = measured[name][known], measured["voxels"][known]
        if not known.any():
            continue
        expected = math.sqrt((variance / voxels).sum()) / len(voxels)
        error = float(values.std() / math.sqrt(len(values)))
        lines[name] = Line(float(values.mean()), standard_error=error, limit=_widen(limit, expected))
    voxels = measured["voxels"][filled]
    # A decoder that fades at the surface shifts the rim against the sign of a, which cancels in the mean over volumes.
    a, b = (measured[name][filled] for name in "ab")
    square = (a**2).sum()
    slope = (a * b * measured["rim_mean"][filled]).sum() / square
    # each half of a ball has half of its voxels: their means differ by 2 b / sqrt(voxels)
    error = float(np.sqrt((4 * (a * b) ** 2 / voxels).sum()) / square)
    return lines | {"rim_fade": Line(float(slope), standard_error=error, limit=_widen(RIM_FADE, error))}


@dataclass(frozen=True)
class Scores:
    """What ``score_volumes`` found in a set of volumes.

    Args:
        lines: statistics by name.
        measured: measurements of each volume, as ``measure_dataset`` gives them; empty where no law is known.
    """

    lines: Mapping[str, Line]
    measured: Mapping[str, np.ndarray]


def score_volumes(
    volumes: Dataset,
    reference: Dataset | None = None,
    law: SphereLaw | None = None,
    data_range: float = 10.0,
    diversity_size: int = 50,
    classifier_epochs: int = 10,
    tolerance: float = 0.0,
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    training: Dataset | None = None,
) -> Scores:
    """Score a set of volumes against the law and against real ones.

    Args:
        volumes: items with volumes (1, D, H, W) under ``CommonKeys.IMAGE``.
        reference: real volumes that no training saw, alike; ``None`` leaves out diversity, classifier and copies.
        law: the true distribution; ``None`` leaves out everything that needs one.
        data_range: range of the values, for SSIM.
        diversity_size: volumes, and pairs of them, for the diversity, at most; volumes that may be copies, alike.
        classifier_epochs: passes of the classifier over its training half.
        tolerance: voxels of at most this absolute value count as background.
        batch_size: volumes measured at a time.
        num_workers: processes that make and measure the volumes.
        seed: of the volumes that diversity compares, and of the classifier.
        device: where the classifier trains, and without other processes volumes are measured.
        training: the volumes that a training saw, of which ``volumes`` may be copies; ``None`` for no such test.

    Returns:
        Lines by name and the measurements that they rest on.
    """
    lines: dict[str, Line] = {}
    measured: dict[str, np.ndarray] = {}
    if law is not None:
        measured = measure_dataset(volumes, batch_size, num_workers, tolerance, device)
        lines |= score_parameters(measured, law)
    if reference is not None:
        lines |= score_diversity(volumes, reference, data_range, diversity_size, seed)
        lines |= classify_two_samples(
            volumes, reference, classifier_epochs, seed=seed, device=device, num_workers=num_workers
        )
        if training is not None:
            lines |= score_copies(volumes, reference, training, diversity_size, seed)
    return Scores(lines, measured)
