"""What validation compares: reconstructions, and beside them what a perfect denoiser would score."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import CommonKeys

from .distributions import ZeroInflatedNormal
from .measurement import compare_with_law, measure_spheres
from .spheres import SphereLaw

logger = logging.getLogger(__name__)


def _average(x: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    spatial = (1, 2, 3, 4)
    return (x * support).sum(dim=spatial) / support.sum(dim=spatial).clamp_min(1)


class ReconstructionScores:
    """Post-processing of a validation batch: from the decoder's channels to what the metrics compare.

    It is called with the dictionary of batch and output together and adds, for a batch of B volumes:

    - ``reconstruction``: mean of the voxels' distribution, (B, 1, D, H, W);
    - ``sample``: a draw from the voxels' distribution, (B, 1, D, H, W);
    - ``oracle``: what a perfect denoiser returns, the noise-free signal, (B, 1, D, H, W);
    - ``support`` and ``true_support``: predicted and true, (B, 1, D, H, W), 0 or 1;
    - ``parameters`` and ``true_parameters``: decoded and true (a, b), (B, 2): the mean over the predicted support of
      the voxels' mean and deviation;
    - ``nll``: negative log-likelihood of the image, nats a voxel, (B,).

    Example:
        In a config, ``"postprocessing": {"_target_": "scripts.metrics.ReconstructionScores"}`` with ``decollate`` off.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Add the derived entries to a batch; see the class."""
        image = data[CommonKeys.IMAGE]
        voxels = ZeroInflatedNormal.from_channels(data[CommonKeys.PRED])
        support = voxels.is_foreground.float()
        decoded = torch.stack([_average(voxels.loc, support), _average(voxels.scale, support)], dim=1)
        true = torch.stack([data["a"], data["b"]], dim=1).to(decoded)
        return {
            **data,
            "reconstruction": voxels.mean,
            "sample": voxels.draw(torch.randn_like(voxels.loc)),
            "oracle": data["signal"].to(image),
            "support": support,
            "true_support": (image != 0).float(),
            "parameters": decoded,
            "true_parameters": true,
            "nll": -voxels.log_prob(image).mean(dim=(1, 2, 3, 4)),
        }


class SampleScores:
    """Post-processing of a batch of generated volumes: adds ``measured``, what ``measure_spheres`` finds in each."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Add the measurements to a batch; see the class."""
        return {**data, "measured": measure_spheres(data[CommonKeys.PRED])}


def column(index: int, prediction: str = "parameters", truth: str = "true_parameters") -> Callable:
    """Make the output transform of a metric that compares one column of two (B, N) outputs.

    Args:
        index: the column.
        prediction: name of the predicted output.
        truth: name of the true one.

    Returns:
        A function from an engine's output to ``(predicted, true)``, each of shape (B,).
    """
    return lambda output: (output[prediction][:, index], output[truth][:, index])


def write_metrics(
    path: str | os.PathLike,
    reconstruction: Mapping[str, float],
    measured: Mapping[str, np.ndarray],
    law: SphereLaw,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write an evaluation as JSON and log it as a table.

    Args:
        path: the file to write; its folder is made.
        reconstruction: metrics of the autoencoder on held-out spheres.
        measured: parameters of the generated volumes, arrays of shape (N,), as ``measure_spheres`` names them.
        law: the true distribution.
        settings: what the evaluation was run with.

    Returns:
        What was written: ``settings``, ``reconstruction``, and ``samples`` with the overlap of each volume with a ball
        (``dice_median``, and ``dice_share``, the share of volumes above 0.97) and each parameter beside the law.
    """
    comparison = compare_with_law(measured, law)
    result = {
        "settings": dict(settings),
        "reconstruction": dict(reconstruction),
        "samples": {
            "dice_median": float(np.median(measured["dice"])),
            "dice_share": float((measured["dice"] > 0.97).mean()),
            "parameters": comparison,
        },
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=2) + "\n")

    lines = [f"{'sample':<10} {'mean':>8} {'law':>8} {'std':>8} {'law':>8} {'KS':>7} {'p':>7}"]
    for name, row in comparison.items():
        label = f"({name} - r)/.." if name.startswith("c") else name
        lines.append(
            f"{label:<10} {row['mean']:>8.3f} {row['law_mean']:>8.3f} {row['std']:>8.3f} {row['law_std']:>8.3f} "
            f"{row['ks']:>7.3f} {row['p_value']:>7.3f}"
        )
    logger.info(
        "%d generated volumes beside the law; Dice with a ball: median %.3f, above 0.97 in %.1f%%\n%s\nsaved to %s",
        len(measured["dice"]),
        result["samples"]["dice_median"],
        100 * result["samples"]["dice_share"],
        "\n".join(lines),
        path,
    )
    return result
