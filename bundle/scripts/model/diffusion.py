"""How the diffusion model is trained on encoded latents: the pass through the network, and its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.engines import VPredictionPrepareBatch
from monai.inferers import Inferer
from monai.networks.schedulers import RFlowScheduler, Scheduler
from torch import nn

from ..checks import SettingError, is_integer
from ..distributed import draw_share, randn_share
from ..environment import autocast
from .tokens import CONDITION, ConditionTokens

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class AutocastInferer(Inferer):
    """Runs another inferer with activations of a given type; MONAI's engines choose one for CUDA alone.

    Args:
        inferer: for latents that are encoded and scaled beforehand MONAI's ``DiffusionInferer``, which adds the noise
            and asks the network for its prediction, or another package's.
        dtype: type of the network's activations: ``torch.float32``, or a shorter one for autocast. Mind convolutions on
            volumes of 2^3 that are no ``SmallConv3d``: on some CPUs their bf16 backward returns non-finite gradients
            now and then (PyTorch 2.13), and the training skips these steps.
    """

    def __init__(self, inferer: Callable[..., torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.inferer = inferer
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Infer from ``inputs``, shape (B, C, d, h, w); returns what the inferer does, in float32."""
        with autocast(inputs, self.dtype):
            return self.inferer(inputs, network, *args, **kwargs).float()


def average_posterior(
    images: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    scheduler: Scheduler | RFlowScheduler,
    reference: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate the means of the clean data and of the noise, given the noisy data that a scheduler makes of both.

    Noisy data y = alpha x + sigma n may come from any x, with the normal density of (y - alpha x) / sigma for a weight.
    The estimate is the weighted mean over the item itself and a reference, the stable target of Xu, Tong and Jaakkola
    (2023), "Stable Target Field for Reduced Variance Score Estimation in Diffusion Models", section 3. Averaged over
    references it has no bias: item and reference are drawn from the same data, and the weights are the probabilities
    that the noise was added to each of them, given y and the set of them. At little noise the item has all the weight.

    Args:
        images: the data, shape (B, C, d, h, w).
        noise: of the same shape.
        timesteps: shape (B,).
        scheduler: its ``add_noise`` tells alpha and sigma of a timestep.
        reference: other data, drawn at random, shape (N, C, d, h, w).

    Returns:
        The means of data and noise, each (B, C, d, h, w).
    """
    one = images.new_ones(len(images), 1, 1, 1, 1)
    alpha, sigma = (scheduler.add_noise(*pair, timesteps).flatten(1) for pair in ((one, 0 * one), (0 * one, one)))
    ratio = alpha / sigma.clamp(min=1e-4)  # without noise the item alone counts, whatever the ratio
    x, others, n = (values.flatten(1).float() for values in (images, reference, noise))
    y = ratio * x + n
    # the logarithm of the density, but for |y|^2 / 2, which all have
    own = ratio * (y * x).sum(dim=1, keepdim=True) - ratio**2 * x.square().sum(dim=1, keepdim=True) / 2
    theirs = ratio * (y @ others.T) - ratio**2 * others.square().sum(dim=1) / 2
    # Most weights are next to nothing. Subnormal numbers slow a CPU down many times, as weights or as their products.
    weights = F.threshold(torch.cat([own, theirs], dim=1).softmax(dim=1), 1e-30, 0.0)
    mean = weights[:, :1] * x + weights[:, 1:] @ others
    return mean.view_as(images), (n + ratio * (x - mean)).view_as(noise)


class VelocityPrepareBatch(VPredictionPrepareBatch):
    """MONAI's preparation of a batch for velocity prediction, for diffusion and for rectified flow.

    The velocity of a diffusion is its scheduler's (Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of
    Diffusion Models", appendix D); that of a rectified flow, from noise to data along straight lines, is data less
    noise (Liu et al. 2023, "Flow Straight and Fast", equation 1).

    Args:
        scheduler: adds the noise, a diffusion's scheduler of MONAI's or its ``RFlowScheduler``.
        num_train_timesteps: as the scheduler's.
        fixed: whether an item's draws are the same every time, whatever the batch: by its ``index``, which it then
            needs, the timesteps spread evenly. The validation losses of two epochs then differ by the network alone.
        tokens: makes what the network is asked for of the numbers of each item, (B, K) under ``condition``, NaN
            where one is missing; ``None`` asks for nothing.
        reference: draws so many latents of the training, to average the target over; ``None`` keeps the plain target.
        reference_size: how many are drawn for each batch; 0 keeps the plain target too.

    Raises:
        SettingError: when ``reference_size`` is no number of latents.
    """

    def __init__(
        self,
        scheduler: Scheduler | RFlowScheduler,
        num_train_timesteps: int,
        fixed: bool = False,
        tokens: ConditionTokens | None = None,
        reference: Callable[[int], torch.Tensor] | None = None,
        reference_size: int = 2048,
    ) -> None:
        super().__init__(
            scheduler=scheduler,
            num_train_timesteps=num_train_timesteps,
            condition_name=None if tokens is None else CONDITION,
        )
        self.fixed = fixed
        self.tokens = tokens
        if not is_integer(reference_size) or reference_size < 0:
            raise SettingError(f"reference_size={reference_size!r}: must be a whole number, 0 or more.")
        self.scheduler: Scheduler | RFlowScheduler
        self.reference = reference if reference_size else None
        self.reference_size = reference_size
        # of the batch at hand
        self.indices: list[int] = []
        self.free: torch.Tensor | slice = slice(None)  # which items are asked for nothing

    def __call__(
        self,
        batchdata: Mapping[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict]:
        """Prepare a batch of latents, as ``EncodedLatents`` has them.

        Returns:
            Latents, velocity, no arguments, and by name noise, timesteps and, with tokens, the condition.
        """
        batch = dict(batchdata)
        if self.fixed:
            self.indices = batch["index"].tolist()
        if self.tokens is not None:
            values = self.hide(batch[CONDITION])
            self.free = values.isnan().all(dim=1)
            batch[CONDITION] = self.tokens(values)
        return super().__call__(batch, device, non_blocking, **kwargs)

    def hide(self, values: torch.Tensor) -> torch.Tensor:
        """Set values (B, K) to NaN at random, so that the network learns to be asked for any of them.

        Condition dropout, as of Ho and Salimans (2022), who drop all or none. Each item has a probability of its own,
        drawn evenly, with which each of its values is hidden. So every number of known values is equally likely, from
        none, as a model without conditions learns, to all.
        """
        size = 1 + values.shape[1]
        if self.fixed:
            # other numbers than those of the noise, which has the index for its seed
            generators = (torch.Generator().manual_seed(-1 - index) for index in self.indices)
            draws = torch.stack([torch.rand(size, generator=generator) for generator in generators])
        else:
            draws = draw_share(lambda count: torch.rand(count, size), len(values))
        return torch.where(draws[:, 1:] < draws[:, :1], math.nan, values)

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        """Return the noise for a batch of latents (B, C, d, h, w), of their shape."""
        if not self.fixed:
            return randn_share(images)
        generators = (torch.Generator().manual_seed(index) for index in self.indices)
        return torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators]).to(images)

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the timesteps for a batch of latents, shape (B,)."""
        if self.fixed:
            # multiples of the golden ratio: as many in each part of the interval, however many there are
            fractions = (torch.tensor(self.indices, dtype=torch.float64) + 0.5) * GOLDEN_RATIO % 1
            return (fractions * self.num_train_timesteps).long()
        draw: Any = self.scheduler.sample_timesteps if self._is_flow else super().get_timesteps
        return draw_share(lambda count: draw(images[:1].expand(count, *images.shape[1:])), len(images))

    @property
    def _is_flow(self) -> bool:
        return isinstance(self.scheduler, RFlowScheduler)

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the velocity, of the shape of ``images``."""
        if self.reference is not None:
            reference = self.reference(self.reference_size).to(images)
            images, noise, free = images.clone(), noise.clone(), self.free
            images[free], noise[free] = average_posterior(
                images[free], noise[free], timesteps[free], self.scheduler, reference
            )
        if self._is_flow:
            return images - noise
        return super().get_target(images, noise, timesteps)
