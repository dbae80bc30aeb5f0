"""Reference: one training step of the diffusion model as in MONAI's tutorial script, which encodes each batch again."""

from __future__ import annotations

import torch
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from reference_autoencoder import make_autoencoder, show


def make_unet() -> DiffusionModelUNet:
    """Make a network for latents of 4 x 4^3: this bundle's up to version 0.4.0."""
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=4,
        out_channels=4,
        channels=(96,),
        attention_levels=(True,),
        num_res_blocks=1,
        num_head_channels=32,
        norm_num_groups=32,
        include_fc=False,
        use_combined_linear=False,
    )


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
    noise = torch.randn(len(images), *latent_shape, device=images.device)
    timesteps = torch.randint(0, inferer.scheduler.num_train_timesteps, (len(images),), device=images.device)
    prediction = inferer(
        inputs=images, autoencoder_model=stage1, diffusion_model=unet, noise=noise, timesteps=timesteps
    )
    loss = torch.nn.functional.mse_loss(prediction.float(), noise)
    loss.backward()
    optimizer.step()
    return loss.detach()


def main(steps: int = 8) -> None:
    """Take steps on the bundle's data, and print the seconds of one, the first not counted."""
    from measure import load_config, time_side_by_side

    config = load_config("train_diffusion", initialize=False, train_size=8, val_size=8, epochs=1, precision="float32")
    volumes, device = config.get_parsed_content("train#volumes"), config.get_parsed_content("device")
    unet, stage1 = make_unet().to(device), Stage1(make_autoencoder().to(device)).eval()
    scheduler = DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    inferer, optimizer = LatentDiffusionInferer(scheduler), torch.optim.Adam(unet.parameters(), lr=1e-4)

    def step() -> None:
        images = torch.stack([volumes[i]["image"] for i in range(8)]).to(device)
        train_step(unet, stage1, inferer, optimizer, images, (4, 4, 4, 4)).item()

    print(time_side_by_side({"step": step}, steps)["step"])


if __name__ == "__main__":
    main()
