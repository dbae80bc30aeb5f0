"""The fidelity table: the lines of a set of volumes beside those of real ones, on the screen and as JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from ..atomic import replacing
from ..data.spheres import PARAMETERS
from .lines import Line

logger = logging.getLogger(__name__)

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
    "copies": "nearer to training than held-out",
}


def format_table(scored: Mapping[str, Line], real: Mapping[str, Line]) -> str:
    """Lay out lines beside those of real volumes, one statistic a row."""
    rows = [f"{'':<36} {'volumes':>9} {'real':>9} {'limit':>9}"]
    for name, label in LABELS.items():
        if name not in scored:
            continue
        line = scored[name]
        floor = f"{real[name].value:>9.4f}" if name in real else f"{'':>9}"
        verdict = "" if line.limit is None else "ok" if line.ok else "FAILS"
        rows.append(f"{label:<36} {line.value:>9.4f} {floor} {line.bound:>9}  {verdict:<5}  {line.remark}".rstrip())
    return "\n".join(rows)


def format_verdict(scored: Mapping[str, Line]) -> list[str]:
    """Say in a few lines what the table comes to: why volumes are not valid, what could not be tested, what failed."""
    text = []
    if "valid" in scored:  # else these are no spheres, and no law is known
        reasons = ", ".join(f"{reason} ({count})" for reason, count in (scored["valid"].reasons or {}).items())
        untested = [name for name in (*(f"ks_{name}" for name in PARAMETERS), "rank_correlation") if name not in scored]
        text += [f"not valid: {reasons}"] if reasons else []
        text += [f"not tested: {', '.join(untested)}"] if untested else []
    if any(line.limit is not None for line in scored.values()):
        failed = [name for name, line in scored.items() if not line.ok]
        text.append(f"beyond their limit: {', '.join(failed)}" if failed else "every limit tested holds")
    return text


def write_fidelity(
    path: str | os.PathLike,
    scored: Mapping[str, Line],
    real: Mapping[str, Line],
    reconstruction: Mapping[str, float],
    settings: Mapping[str, Any],
) -> None:
    """Write an evaluation as JSON and log it as a table.

    Beside ``settings`` and ``reconstruction`` stand ``volumes`` and ``real``, the lines by name, and ``failed``, the
    names of the lines that go beyond their limit.

    Args:
        path: the file to write; its folder is made.
        scored: lines of the volumes that were scored.
        real: the same statistics of real volumes.
        reconstruction: metrics of the autoencoder on held-out volumes; empty when there is none.
        settings: what the evaluation was run with.
    """
    result = {
        "settings": dict(settings),
        "reconstruction": dict(reconstruction),
        "volumes": {name: line.as_dict() for name, line in scored.items()},
        "real": {name: line.as_dict() for name, line in real.items()},
        "failed": [name for name, line in scored.items() if not line.ok],
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    text = [format_table(scored, real), *format_verdict(scored), f"saved to {path}"]
    logger.info("fidelity\n%s", "\n".join(text))
