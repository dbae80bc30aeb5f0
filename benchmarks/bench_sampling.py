"""Sampling: seconds a volume, and which factor comes from where."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measure import RELEASED, Row, load_config, time_side_by_side
from reference_autoencoder import make_autoencoder
from reference_diffusion import make_unet
from reference_sampling import sample

from scripts.model.generator import VolumeGenerator


def make_generator(**settings: str | int) -> VolumeGenerator:
    """Build the generator of ``inference.json``, with the released weights."""
    config = load_config("inference", model_path=str(RELEASED / "model.pt"), **settings)
    return config.get_parsed_content("network").eval()


def bench_sampling(rounds: int = 3) -> Iterator[Row]:
    """Compare the default sampler with DDPM, the tutorials' way and at this bundle's batch size."""
    ours, plain = make_generator(), make_generator(precision="float32")
    device = plain.scale_factor.device
    autoencoder, unet = make_autoencoder().to(device).eval(), make_unet().to(device).eval()

    def run(function, batch: int, latent_shape: tuple[int, ...] = (32, 2, 2, 2)):
        noise = torch.randn(batch, *latent_shape, device=device)

        def call() -> None:
            function(noise)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return call

    def sample_plainly(noise: torch.Tensor) -> torch.Tensor:
        return sample(unet, autoencoder, 1.0, noise)

    seconds = time_side_by_side(
        {
            "ours": run(ours, 16),
            "float32": run(plain, 16),
            "one at a time": run(plain, 1),
            "tutorial": run(sample_plainly, 1, (4, 4, 4, 4)),
            "ddpm": run(sample_plainly, 16, (4, 4, 4, 4)),
        },
        rounds,
    )
    each = {name: value / (1 if name in ("one at a time", "tutorial") else 16) for name, value in seconds.items()}
    factors = {
        "10 steps and other networks": each["tutorial"] / each["one at a time"],
        "batches of 16": each["one at a time"] / each["float32"],
        "precision": each["float32"] / each["ours"],
    }
    yield Row(
        "sampling",
        "a volume, beside DDPM one volume at a time",
        "s",
        each["ours"],
        each["tutorial"],
        least_ratio=300,
        most=0.015,
        note=", ".join(f"{name}: {factor:.1f} times" for name, factor in factors.items()),
    )
    what = "a volume, beside DDPM in batches of 16"
    yield Row("sampling", what, "s", each["ours"], each["ddpm"], least_ratio=40)
