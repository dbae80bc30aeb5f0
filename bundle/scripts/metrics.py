"""What validation compares: reconstructions, and beside them what a perfect denoiser would score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.utils import CommonKeys

from .distributions import ZeroInflatedNormal


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
