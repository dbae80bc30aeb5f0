"""How the diffusion model is trained on encoded latents: the pass through the network, its target, and its speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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
            (PyTorch 2.13), and the training skips these steps. ``speed_up`` avoids them; no config uses it yet.
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


class SmallConv3d(nn.Conv3d):
    """A convolution with a kernel of 3^3 that works on grids of at most 2^3 as one product of matrices.

    On such a grid each output sees each input, through 8 of the kernel's 27 taps; the usual way reckons with all 27.
    This takes a quarter of the time on a CPU, and it avoids a fault: PyTorch 2.13's bf16 backward of ``Conv3d`` on 2^3
    now and then returns gradients that are not finite. Larger grids, and exporters, take the usual way.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, d, h, w)."""
        grid = x.shape[2:]
        plain = self.kernel_size == (3, 3, 3) and self.stride == self.dilation == (1, 1, 1) and self.groups == 1
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if max(grid) > 2 or not plain or exporting:
            return super().forward(x)
        places = torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in grid)).view(-1, 3)
        taps = ((places[None] - places[:, None] + 1) * torch.tensor([9, 3, 1], device=x.device)).sum(dim=-1)
        outputs, inputs, count = self.out_channels, self.in_channels, len(places)
        # a product with ones and zeros: picking the taps out by index has a slow backward
        picked = self.weight.view(outputs * inputs, 27) @ F.one_hot(taps.flatten(), 27).T.to(self.weight)
        matrix = picked.view(outputs, inputs, count, count).permute(1, 3, 0, 2).reshape(inputs * count, outputs * count)
        y = x.reshape(len(x), -1) @ matrix.to(x.dtype)
        bias = 0 if self.bias is None else self.bias.view(-1, 1, 1, 1)
        return y.view(len(x), outputs, *grid) + bias


def speed_up(network: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Let a network's convolutions work as ``SmallConv3d`` does, and move it to a device; its weights stay its own.

    Args:
        network: MONAI's ``DiffusionModelUNet``, or another.
        device: where to; ``None`` leaves it where it is.

    Returns:
        The network.
    """
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = SmallConv3d  # the same parameters, another forward
    return network if device is None else network.to(device)
