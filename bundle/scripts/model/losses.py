"""The loss of the autoencoder: the negative evidence lower bound, and the moments that speed it up."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..checks import SettingError, is_integer, is_number
from .distributions import split_channels


class EvidenceLowerBoundLoss(nn.Module):
    """Negative evidence lower bound of a variational autoencoder over zero-inflated normal voxels, per voxel.

    With every weight but the moments' at 1 this is the bound of Kingma & Welling, "Auto-Encoding Variational Bayes"
    (2014), equation 3, divided by the number of voxels; ``kl_weight`` is the beta of Higgins et al. (2017). The
    reconstruction term falls into the cross-entropy of the support and the normal log-likelihood of what is inside.

    The share of ``a`` and ``b`` in that bound is about a hundredth of the support's, so a network learns the shape and
    stops there for thousands of steps. Two terms speed them up: the squared errors of the first and the second moment
    that the decoder predicts over parts of each volume's support. Hundreds of voxels share a moment, so that its noise
    is a small part of a voxel's. There are three parts, by blocks of voxels: the rim, whose blocks lie across the
    surface; the shell next to it; and the core; each is cut by a grid of windows. Over the whole support, too much in
    one place would make up for too little in another. A voxel of the support counts with its part's error, as it does
    with its own likelihood. Both terms have their minimum at the bound's own optimum, which they leave where it is.

    Args:
        kl_weight: weight of the Kullback-Leibler divergence of the latents from N(0, 1).
        normal_weight: weight of the negative normal log-likelihood of the voxels inside.
        mean_weight: weight of the squared errors of the mean.
        second_moment_weight: weight of the squared errors of the second moment.
        block_size: voxels along each axis of the blocks that tell rim, shell and core apart.
        window_size: voxels along each axis of the windows that cut these parts; a multiple of ``block_size``.

    Raises:
        SettingError: when a weight is no number of at least 0, or the windows are not made of whole blocks.

    Attributes:
        parts: the last call's terms before their weights, detached: ``support``, ``normal``, ``kl``, ``mean`` and
            ``second_moment``.
    """

    def __init__(
        self,
        kl_weight: float = 1.0,
        normal_weight: float = 1.0,
        mean_weight: float = 0.0,
        second_moment_weight: float = 0.0,
        block_size: int = 4,
        window_size: int = 16,
    ) -> None:
        super().__init__()
        self.weights = {
            "support": 1.0,
            "normal": normal_weight,
            "kl": kl_weight,
            "mean": mean_weight,
            "second_moment": second_moment_weight,
        }
        for name, weight in self.weights.items():
            if not is_number(weight) or weight < 0:
                raise SettingError(f"{name}_weight={weight!r}: must be a number of at least 0.")
        if not is_integer(window_size) or window_size <= 0 or window_size % block_size:
            raise SettingError(f"window_size={window_size!r}: must be a multiple of block_size={block_size}.")
        self.block_size = block_size
        self.window_size = window_size
        self.parts: dict[str, torch.Tensor] = {}

    def forward(
        self, prediction: tuple[torch.Tensor, torch.Tensor, torch.Tensor], target: torch.Tensor
    ) -> torch.Tensor:
        """Compare what an autoencoder returns with the volumes it was given.

        Args:
            prediction: decoded channels (B, 3, D, H, W), mean and deviation of the latents (B, C, d, h, w).
            target: the volumes, shape (B, 1, D, H, W).

        Returns:
            The weighted sum of the terms, a scalar in nats a voxel.
        """
        channels, mean, deviation = prediction
        logits, loc, log_scale = split_channels(channels)
        inside = (target != 0).float()
        share = F.avg_pool3d(inside, self.block_size)
        # masked here, once: each pass over the voxels costs time
        log_variance = inside * 2 * log_scale
        error = inside * (loc - target)
        # the negative logarithm of the normal density
        normal = 0.5 * ((error.square() * (-log_variance).exp()).sum() + log_variance.sum()) / target.numel()
        normal = normal + 0.5 * math.log(2 * math.pi) * inside.mean()
        # loc^2 + scale^2 - target^2 inside, and 1 outside
        second_moment_error = torch.addcmul(log_variance.exp(), error, loc + target)
        mean_error, second_moment_error = self._square_averages(
            share,
            F.avg_pool3d(error, self.block_size),
            F.avg_pool3d(second_moment_error, self.block_size) - (1 - share),
        )
        # KL(N(m, s^2) || N(0, 1)), Kingma & Welling (2014), appendix B
        kl = 0.5 * (mean**2 + deviation**2 - 2 * deviation.clamp_min(1e-12).log() - 1)
        terms = {
            "support": F.binary_cross_entropy_with_logits(logits, inside),
            "normal": normal,
            "kl": kl.sum() / target.numel(),
            "mean": mean_error,
            "second_moment": second_moment_error,
        }
        self.parts = {name: term.detach() for name, term in terms.items()}
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def _square_averages(self, share: torch.Tensor, *errors: torch.Tensor) -> list[torch.Tensor]:
        """Average ``errors`` over each part of the support, square, and average over voxels.

        Args:
            share: share of each block that is support, shape (B, 1, d, h, w).
            errors: summed over a block's support and divided by its number of voxels, each of the shape of ``share``.

        Returns:
            A scalar for each of ``errors``.
        """
        full = (share == 1).float()
        core = -F.max_pool3d(-full, kernel_size=3, stride=1, padding=1)
        parts = torch.cat([1 - full, full - core, core], dim=1)
        blocks = [min(self.window_size // self.block_size, length) for length in share.shape[2:]]
        add_up = partial(F.avg_pool3d, kernel_size=blocks, ceil_mode=True, divisor_override=1)
        size = add_up(parts * share)  # of each part in each window, in blocks
        # a part with less than a block of voxels has little to say
        averages = [add_up(parts * error) / size.clamp_min(1.0) for error in errors]
        return [(size * average.square()).sum() / share.numel() for average in averages]
