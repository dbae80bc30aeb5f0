"""Training steps of both stages, beside the loops of MONAI's tutorials."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import Row, bundle_command, load_config, run_command, time_side_by_side
from monai.inferers import LatentDiffusionInferer
from monai.networks.schedulers import DDPMScheduler
from recipes import read_results
from reference_autoencoder import train_step as train_autoencoder
from reference_diffusion import Stage1
from reference_diffusion import train_step as train_diffusion
from torch.utils.flop_counter import FlopCounterMode

from scripts.latents import EncodedLatents

HERE = Path(__file__).parent


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int = 4096) -> float:
    """Measure the fastest product of two square matrices, in operations a second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / time_side_by_side({"multiply": multiply})["multiply"]


def plain_copy(network: torch.nn.Module) -> torch.nn.Module:
    """Copy a network with contiguous weights."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def bench_autoencoder(steps: int = 4, rounds: int = 5) -> Iterator[Row]:
    """Compare a training step of the first stage with the tutorial's."""
    config = load_config("train_autoencoder", train_size=8 * steps, val_size=8, epochs=1, val_interval=1000)
    trainer, loader = config.get_parsed_content("train#trainer"), config.get_parsed_content("train#dataloader")
    device, dtype = config.get_parsed_content("device"), config.get_parsed_content("dtype")
    network, loss = config.get_parsed_content("network"), config.get_parsed_content("loss")
    autoencoder = plain_copy(network.network)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-4)

    def reference() -> None:
        for batch in loader:
            train_autoencoder(autoencoder, loss, optimizer, batch["image"].to(device)).item()

    seconds = time_side_by_side({"ours": trainer.run, "reference": reference}, rounds)
    images = next(iter(loader))["image"].to(device)
    with FlopCounterMode(display=False) as counter:
        loss(network(images), images).backward()
    limit = counter.get_total_flops() / matrix_peak(device, dtype)
    yield Row(
        "autoencoder",
        "a training step of 8 volumes",
        "s",
        seconds["ours"] / steps,
        seconds["reference"] / steps,
        limit,
        least_ratio=3 if device.type == "cuda" else 4,
        note=f"{counter.get_total_flops() / 1e9:.0f} GFLOP; limit: at the matrix-product peak in {dtype}",
    )
    trainings = read_results()["trainings"]
    ours, plain = (trainings[name]["validation"]["nll"] for name in ("autoencoder", "autoencoder_float32"))
    what = "validation loss after 512 steps, beside float32 (make recipes)"
    yield Row("autoencoder", what, "nats a voxel", ours, plain, most=plain + 0.01 * abs(plain))
    command = bundle_command("train_autoencoder", train_size=16, val_size=2, epochs=1)
    memory = run_command(command)[1]
    most = run_command([sys.executable, str(HERE / "reference_autoencoder.py")])[1]
    yield Row("autoencoder", "peak memory of a training, batch 8", "GB", memory, most, most=most)


def bench_diffusion(steps: int = 8, rounds: int = 5) -> Iterator[Row]:
    """Compare a training step of the second stage, a volume seen, with the tutorial's."""
    config = load_config("train_diffusion", train_size=64 * steps, val_size=8, epochs=1, val_interval=1000)
    trainer, volumes = config.get_parsed_content("train#trainer"), config.get_parsed_content("train#volumes")
    device = config.get_parsed_content("device")
    autoencoder, network = config.get_parsed_content("autoencoder"), config.get_parsed_content("network")
    stage1, unet = Stage1(plain_copy(autoencoder.network)).eval(), plain_copy(network)
    inferer = LatentDiffusionInferer(
        DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195), scale_factor=1.0
    )
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-4)
    few = list(itertools.islice(volumes, 4))

    def reference() -> None:
        for batch in itertools.islice(volumes, 4):
            train_diffusion(unet, stage1, inferer, optimizer, batch["image"].to(device), (4, 4, 4, 4)).item()

    seconds = time_side_by_side(
        {"ours": trainer.run, "reference": reference, "encode": lambda: EncodedLatents(few, autoencoder)}, rounds
    )
    epochs = load_config("train_diffusion").get("epochs")
    encode = seconds["encode"] / 32
    ours = seconds["ours"] / (64 * steps)
    yield Row(
        "diffusion",
        "a volume seen in training",
        "ms",
        (ours + encode / epochs) * 1e3,
        seconds["reference"] / 32 * 1e3,
        least_ratio=20,
        note=f"{ours * 1e3:.2f} ms for the step and {encode * 1e3:.1f} for encoding, once in {epochs} epochs; "
        "ours in batches of 64, the reference in batches of 8",
    )
