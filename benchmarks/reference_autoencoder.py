"""Reference: one training step of the autoencoder as in MONAI's tutorial script, in float32 on contiguous tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch


def show(images: torch.Tensor) -> torch.Tensor:
    """Make the three channels that this bundle's encoder sees of volumes (B, 1, D, H, W)."""
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


def main(steps: int = 2) -> None:
    """Take a few steps on the bundle's network, for the memory that they need."""
    from measure import load_config

    config = load_config("train_autoencoder", train_size=8 * steps, epochs=1, precision="float32")
    autoencoder = config.get_parsed_content("network_def").to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-4)
    for batch in config.get_parsed_content("train#dataloader"):
        train_step(autoencoder, config.get_parsed_content("loss"), optimizer, batch["image"])


if __name__ == "__main__":
    main()
