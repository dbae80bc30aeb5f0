"""Reference: one training step of the autoencoder as in MONAI's tutorial script, in float32 on contiguous tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.networks.nets import AutoencoderKL


def make_autoencoder() -> AutoencoderKL:
    """Make an autoencoder that works on whole volumes, as the tutorials' do: this bundle's up to version 0.4.0."""
    return AutoencoderKL(
        spatial_dims=3,
        in_channels=3,
        out_channels=3,
        channels=(8, 16, 32, 64, 64),
        num_res_blocks=(0, 1, 1, 1, 1),
        attention_levels=(False,) * 5,
        latent_channels=4,
        norm_num_groups=1,
    )


def show(images: torch.Tensor) -> torch.Tensor:
    """Make of volumes (B, 1, D, H, W) the three channels whose means over blocks this bundle's encoder sees."""
    support = (images != 0).float()
    return torch.cat([images, (images.abs() - (2 / torch.pi) ** 0.5) * support, support], dim=1)


def train_step(
    autoencoder: torch.nn.Module, loss_function: Callable, optimizer: torch.optim.Optimizer, images: torch.Tensor
) -> torch.Tensor:
    """Take a step on a batch of volumes (B, 1, D, H, W); returns the loss."""
    autoencoder.train()
    optimizer.zero_grad(set_to_none=True)
    reconstruction, mean, deviation = autoencoder(show(images))
    loss = loss_function((reconstruction, mean, deviation), images)
    loss.backward()
    optimizer.step()
    return loss.detach()


def main(steps: int = 4) -> None:
    """Take steps on the bundle's data and with its loss, and print the seconds of one, the first not counted."""
    from measure import load_config, time_side_by_side

    config = load_config("train_autoencoder", initialize=False, train_size=8, epochs=1, precision="float32")
    loader, device = config.get_parsed_content("train#dataloader"), config.get_parsed_content("device")
    autoencoder = make_autoencoder().to(device)
    loss, optimizer = config.get_parsed_content("loss"), torch.optim.Adam(autoencoder.parameters(), lr=1e-4)

    def step() -> None:
        for batch in loader:
            train_step(autoencoder, loss, optimizer, batch["image"].to(device)).item()

    print(time_side_by_side({"step": step}, steps)["step"])


if __name__ == "__main__":
    main()
