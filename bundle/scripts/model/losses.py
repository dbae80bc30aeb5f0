"""The loss of the autoencoder: the negative evidence lower bound, and the moments that speed it up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal

from ..checks import SettingError, is_number
from .distributions import ZeroInflatedNormal


class EvidenceLowerBoundLoss(nn.Module):
    """Negative evidence lower bound of a variational autoencoder over zero-inflated normal voxels, per voxel.

    With every weight but the moments' at 1 this is the bound of Kingma & Welling, "Auto-Encoding Variational Bayes"
    (2014), equation 3, divided by the number of voxels; ``kl_weight`` is the beta of Higgins et al. (2017). The
    reconstruction term falls into the cross-entropy of the support and the normal log-likelihood of what is inside.

    The share of ``a`` and ``b`` in that bound is about a hundredth of the support's, so a network learns the shape and
    stops there for thousands of steps. Two terms speed them up: the squared errors of the first and the second moment
    that the decoder predicts over parts of each volume's support. Thousands of voxels share each moment, so that its
    noise is about a hundredth of a voxel's. There are three parts, by blocks of voxels: the rim, whose blocks lie
    across the surface; the shell next to it; and the core. Over the whole support, too much in one would make up for
    too little in another. Both terms vanish at the bound's own optimum, which they leave where it is.

    Args:
        kl_weight: weight of the Kullback-Leibler divergence of the latents from N(0, 1).
        normal_weight: weight of the negative normal log-likelihood of the voxels inside.
        mean_weight: weight of the squared errors of the mean.
        second_moment_weight: weight of the squared errors of the second moment.
        block_size: voxels along each axis of the blocks that tell rim, shell and core apart.

    Raises:
        SettingError: when a weight is no number of at least 0.

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
        self.block_size = block_size
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
        voxels = ZeroInflatedNormal.from_channels(channels)
        inside = (target != 0).float()
        normal = -Normal(voxels.loc, voxels.scale, validate_args=False).log_prob(target)
        mean_error, second_moment_error = self._average(
            inside, voxels.loc - target, voxels.loc**2 + voxels.scale**2 - target**2
        )
        # KL(N(m, s^2) || N(0, 1)), Kingma & Welling (2014), appendix B
        kl = 0.5 * (mean**2 + deviation**2 - 2 * deviation.clamp_min(1e-12).log() - 1)
        terms = {
            "support": F.binary_cross_entropy_with_logits(voxels.logits, inside),
            "normal": (inside * normal).mean(),
            "kl": kl.sum() / target.numel(),
            "mean": mean_error.square().mean(),
            "second_moment": second_moment_error.square().mean(),
        }
        self.parts = {name: term.detach() for name, term in terms.items()}
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def _average(self, inside: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
        """Average each of ``values`` (B, 1, D, H, W) over rim, shell and core of the support: shapes (3, B)."""
        share = F.avg_pool3d(inside, self.block_size)
        full = (share == 1).float()
        core = -F.max_pool3d(-full, kernel_size=3, stride=1, padding=1)
        parts = torch.stack([1 - full, full - core, core])
        count = (parts * share).sum(dim=(2, 3, 4, 5)).clamp_min(1.0)  # of blocks; a part with few has little to say
        return [
            (parts * F.avg_pool3d(inside * value, self.block_size)).sum(dim=(2, 3, 4, 5)) / count for value in values
        ]
