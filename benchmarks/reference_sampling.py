"""Reference: sampling as in MONAI's tutorial, DDPM's 1,000 steps in float32 on contiguous tensors."""

from __future__ import annotations

import torch
from monai.inferers import LatentDiffusionInferer
from monai.networks.schedulers import DDPMScheduler


@torch.no_grad()
def sample(
    unet: torch.nn.Module, autoencoder: torch.nn.Module, scale_factor: float, noise: torch.Tensor
) -> torch.Tensor:
    """Turn latent noise (B, C, d, h, w) into volumes (B, 1, D, H, W)."""
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195
    )
    scheduler.set_timesteps(num_inference_steps=1000)
    inferer = LatentDiffusionInferer(scheduler, scale_factor=scale_factor)
    channels = inferer.sample(
        input_noise=noise, diffusion_model=unet, scheduler=scheduler, autoencoder_model=autoencoder, verbose=False
    )
    logits, mean, log_deviation = channels.chunk(3, dim=1)
    return torch.where(logits > 0, mean + log_deviation.exp() * torch.randn_like(mean), 0.0)
