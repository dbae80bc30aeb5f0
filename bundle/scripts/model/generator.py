"""The whole model as one network, from latent noise to volumes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer, LatentDiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler, Scheduler
from torch import nn

from ..checks import SettingError
from ..environment import autocast
from .autoencoder import VolumeAutoencoder
from .distributions import ZeroInflatedNormal
from .scripting import TracedWhenScripted


class VolumeGenerator(TracedWhenScripted):
    """From latent noise to volumes: every step of the sampler, the scale factor, the decoder and the draw of voxels.

    Its state dict is all that generation needs.

    Args:
        diffusion_model: the noise predictor, MONAI's ``DiffusionModelUNet``.
        autoencoder: decodes the latents; both networks run in its precision.
        scheduler: the sampler, MONAI's ``RFlowScheduler``, ``DDIMScheduler`` or ``DDPMScheduler``.
        num_inference_steps: steps of the sampler.
        inferer: makes an inferer with the ``sample`` of ``LatentDiffusionInferer`` from scheduler and scale factor.
        scale_factor: what the latents were multiplied with in training; a tensor is held as it is, and may be filled
            later; loaded weights bring their own.

    Raises:
        SettingError: when ``DDPMScheduler`` is asked for another number of steps than it was trained with.
    """

    def __init__(
        self,
        diffusion_model: DiffusionModelUNet,
        autoencoder: VolumeAutoencoder,
        scheduler: Scheduler,
        num_inference_steps: int,
        inferer: Callable[..., LatentDiffusionInferer] = LatentDiffusionInferer,
        scale_factor: float | torch.Tensor = 1.0,
    ) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model
        self.autoencoder = autoencoder
        self.scale_factor: torch.Tensor
        self.register_buffer("scale_factor", torch.as_tensor(scale_factor))
        if isinstance(scheduler, DDPMScheduler) and num_inference_steps != scheduler.num_train_timesteps:
            raise SettingError(
                f"num_inference_steps={num_inference_steps}: must be num_train_timesteps="
                f"{scheduler.num_train_timesteps} with DDPMScheduler, each of whose steps goes from t to t - 1."
            )
        scheduler.set_timesteps(num_inference_steps)  # type: ignore[operator]  # every scheduler of MONAI's has it
        # In a tuple, for MONAI's RFlowScheduler can't be an attribute of a module (it never calls super().__init__).
        self._scheduler = (scheduler,)
        self._make_inferer = inferer
        self.requires_grad_(False)  # what is generated, or exported, carries no graph

    def example_input(self) -> torch.Tensor:
        """Return noise for one volume, to trace with."""
        return torch.zeros(1, self.diffusion_model.in_channels, 4, 4, 4, device=self.scale_factor.device)

    @property
    def scheduler(self) -> Scheduler:
        """The sampler."""
        return self._scheduler[0]

    @torch.no_grad()
    def forward(self, noise: torch.Tensor, texture: torch.Tensor | None = None) -> torch.Tensor:
        """Generate volumes.

        Args:
            noise: standard normal latents, shape (B, C, d, h, w).
            texture: standard normal noise of the voxels, shape (B, 1, D, H, W); ``None`` draws it.

        Returns:
            Volumes, shape (B, 1, D, H, W), float32, background exactly 0.
        """
        # MONAI's annotations name its own networks and floats; what it uses of them is what these have.
        inferer = self._make_inferer(self.scheduler, scale_factor=self.scale_factor)
        with autocast(noise, self.autoencoder.dtype):
            channels: torch.Tensor = inferer.sample(
                noise,
                self.autoencoder,  # type: ignore[arg-type]
                self.diffusion_model,
                verbose=False,
            )  # type: ignore[assignment]
        voxels = ZeroInflatedNormal.from_channels(channels)
        if texture is None:
            texture = torch.randn_like(voxels.loc)
        return voxels.draw(texture)


class FixedBatchInferer(Inferer):
    """Runs a network on batches of one fixed size, whatever the size of the batch that it is given.

    Convolutions and matrix products of another batch size add up in another order, and a generated volume would depend
    in its last digits on how many were asked for with it. The last batch is filled up with copies of its first item.

    Args:
        batch_size: how many items the network is given at a time.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: nn.Module, *others: torch.Tensor
    ) -> torch.Tensor:
        """Run ``network(inputs, *others)``, all of them of shape (B, ...); returns its output, shape (B, ...)."""
        outputs = []
        for start in range(0, len(inputs), self.batch_size):
            batch = [tensor[start : start + self.batch_size] for tensor in (inputs, *others)]
            count = len(batch[0])
            filled = [torch.cat([x, x[:1].expand(self.batch_size - count, *x.shape[1:])]) for x in batch]
            outputs.append(network(*filled)[:count])
        return torch.cat(outputs)
