"""How the diffusion model is trained on encoded latents: the pass through the network, and its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.engines import VPredictionPrepareBatch
from monai.inferers import Inferer
from monai.networks.schedulers import RFlowScheduler, Scheduler
from torch import nn

from ..environment import autocast


class AutocastInferer(Inferer):
    """Runs another inferer with activations of a given type; MONAI's engines choose one for CUDA alone.

    Args:
        inferer: for latents that are encoded and scaled beforehand MONAI's ``DiffusionInferer``, which adds the noise
            and asks the network for its prediction, or another package's.
        dtype: type of the network's activations: ``torch.float32``, or a shorter one for autocast. Mind networks with
            convolutions on volumes of 2^3: on some CPUs their bf16 backward returns non-finite gradients now and then
            (PyTorch 2.13), and the training skips these steps.
    """

    def __init__(self, inferer: Callable[..., torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.inferer = inferer
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Infer from ``inputs``, shape (B, C, d, h, w); returns what the inferer does, in float32."""
        with autocast(inputs, self.dtype):
            return self.inferer(inputs, network, *args, **kwargs).float()


class VelocityPrepareBatch(VPredictionPrepareBatch):
    """MONAI's preparation of a batch for velocity prediction, for diffusion and for rectified flow.

    The velocity of a diffusion is its scheduler's (Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of
    Diffusion Models", appendix D); that of a rectified flow, from noise to data along straight lines, is data less
    noise (Liu et al. 2023, "Flow Straight and Fast", equation 1).

    Args:
        scheduler: adds the noise, a diffusion's scheduler of MONAI's or its ``RFlowScheduler``.
        num_train_timesteps: as the scheduler's.
        fixed: whether noise and timesteps are the same every time, the timesteps spread evenly over the batch. The
            validation losses of two epochs then differ by the network alone.
    """

    def __init__(self, scheduler: Scheduler | RFlowScheduler, num_train_timesteps: int, fixed: bool = False) -> None:
        super().__init__(scheduler=scheduler, num_train_timesteps=num_train_timesteps)
        self.fixed = fixed

    def get_noise(self, images: torch.Tensor) -> torch.Tensor:
        """Return the noise for a batch of latents (B, C, d, h, w), of their shape."""
        if not self.fixed:
            return super().get_noise(images)
        return torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the timesteps for a batch of latents, shape (B,)."""
        if self.fixed:
            fractions = (torch.arange(len(images)) + 0.5) / len(images)
            return (fractions * self.num_train_timesteps).long()
        if isinstance(self.scheduler, RFlowScheduler):
            return self.scheduler.sample_timesteps(images)
        return super().get_timesteps(images)

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the velocity, of the shape of ``images``."""
        if isinstance(self.scheduler, RFlowScheduler):
            return images - noise
        return super().get_target(images, noise, timesteps)
