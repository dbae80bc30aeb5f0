"""Reference: one training step of the diffusion model as in MONAI's tutorial script, which encodes each batch again."""

from __future__ import annotations

import torch
from monai.inferers import LatentDiffusionInferer
from reference_autoencoder import show


class Stage1(torch.nn.Module):
    """The frozen autoencoder as ``LatentDiffusionInferer`` uses it."""

    def __init__(self, autoencoder: torch.nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode_stage_2_inputs(self, images: torch.Tensor) -> torch.Tensor:
        """Draw latents of volumes (B, 1, D, H, W)."""
        return self.autoencoder.encode_stage_2_inputs(show(images))


def train_step(
    unet: torch.nn.Module,
    stage1: Stage1,
    inferer: LatentDiffusionInferer,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    latent_shape: tuple[int, ...],
) -> torch.Tensor:
    """Take a step of noise prediction on a batch of volumes (B, 1, D, H, W); returns the loss."""
    unet.train()
    optimizer.zero_grad(set_to_none=True)
    noise = torch.randn(len(images), *latent_shape)
    timesteps = torch.randint(0, inferer.scheduler.num_train_timesteps, (len(images),))
    prediction = inferer(
        inputs=images, autoencoder_model=stage1, diffusion_model=unet, noise=noise, timesteps=timesteps
    )
    loss = torch.nn.functional.mse_loss(prediction.float(), noise)
    loss.backward()
    optimizer.step()
    return loss.detach()
