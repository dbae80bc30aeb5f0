"""Sampling: seconds a volume, and which factor comes from where."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from measure import Row, load_config, time_side_by_side
from recipes import read_results
from reference_sampling import sample

from scripts.evaluation.measurement import PARAMETERS
from scripts.model.generator import VolumeGenerator

STATISTICS = tuple(f"ks_{name}" for name in PARAMETERS)


def make_generator(**settings: str | int) -> VolumeGenerator:
    """Build the generator of ``inference.json``, with the released weights."""
    return load_config("inference", **settings).get_parsed_content("network").eval()


def bench_sampling(rounds: int = 3) -> Iterator[Row]:
    """Compare the default sampler with DDPM, the tutorials' way and at this bundle's batch size; then the fidelity."""
    ours, plain = make_generator(), make_generator(precision="float32")
    autoencoder = copy.deepcopy(plain.autoencoder.network).to(memory_format=torch.contiguous_format)
    unet, scale_factor = plain.diffusion_model, float(plain.scale_factor)
    device = plain.scale_factor.device
    noise = torch.randn(16, 4, 4, 4, 4, device=device)

    def run(function, batch: int):
        def call() -> None:
            function(noise[:batch])
            if device.type == "cuda":
                torch.cuda.synchronize()

        return call

    seconds = time_side_by_side(
        {
            "ours": run(ours, 16),
            "float32": run(plain, 16),
            "one at a time": run(plain, 1),
            "tutorial": run(lambda z: sample(unet, autoencoder, scale_factor, z), 1),
            "ddpm": run(lambda z: sample(unet, autoencoder, scale_factor, z), 16),
        },
        rounds,
    )
    each = {name: value / (1 if name in ("one at a time", "tutorial") else 16) for name, value in seconds.items()}
    factors = {
        "25 steps instead of 1,000": each["tutorial"] / each["one at a time"],
        "batches of 16": each["one at a time"] / each["float32"],
        "bf16": each["float32"] / each["ours"],
    }
    yield Row(
        "sampling",
        "a volume, beside DDPM one volume at a time",
        "s",
        each["ours"],
        each["tutorial"],
        least_ratio=40,
        note=", ".join(f"{name}: {factor:.1f} times" for name, factor in factors.items()),
    )
    why = "decoding, the same for both, is half of what is left"
    what = "a volume, beside DDPM in batches of 16"
    yield Row("sampling", what, "s", each["ours"], each["ddpm"], least_ratio=40, why=why)
    recipes = read_results()["recipes"]
    flow, ddpm = recipes["flow, 25"]["volumes"], recipes["DDPM"]["volumes"]
    name = max(STATISTICS, key=lambda name: flow[name] - ddpm[name])
    what = f"{name}, which is furthest above DDPM's at equal training (make recipes)"
    why = "the largest of six differences; each statistic varies by about 0.01 between two sets of 1,000 volumes"
    yield Row("sampling", what, "KS statistic", flow[name], ddpm[name], most=ddpm[name] + 0.02, why=why)
