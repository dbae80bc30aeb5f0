"""Training steps of both stages, beside the loops of MONAI's tutorials."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measure import Row, alternate, bundle_command, load_config, run_command, time_side_by_side
from torch.utils.flop_counter import FlopCounterMode

from scripts.data.latents import EncodedLatents


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int = 4096) -> float:
    """Measure the fastest product of two square matrices, in operations a second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / time_side_by_side({"multiply": multiply})["multiply"]


def bench_autoencoder(steps: int = 4) -> Iterator[Row]:
    """Compare a training step of the first stage with the tutorial's."""
    config = load_config("train_autoencoder", train_size=8 * steps, val_size=8, epochs=1, val_interval=1000)
    device, dtype = config.get_parsed_content("device"), config.get_parsed_content("dtype")
    network, loss = config.get_parsed_content("network"), config.get_parsed_content("loss")
    seconds, reference, most = alternate(config.get_parsed_content("train#trainer").run, "reference_autoencoder.py")
    images = next(iter(config.get_parsed_content("train#dataloader")))["image"].to(device)
    with FlopCounterMode(display=False) as counter:
        loss(network(images), images).backward()
    limit = counter.get_total_flops() / matrix_peak(device, dtype)
    yield Row(
        "autoencoder",
        "a training step of 8 volumes",
        "s",
        seconds / steps,
        reference,
        limit,
        least_ratio=8,
        note=f"{counter.get_total_flops() / 1e9:.0f} GFLOP; limit: at the matrix-product peak in {dtype}",
    )
    loader = config.get_parsed_content("train#dataloader")
    waiting = time_side_by_side({"volumes": lambda: [None for _ in loader]})["volumes"] / seconds
    most_waiting = 0.10 if device.type == "cuda" else 0.03
    yield Row("autoencoder", "share of a step that waits for volumes", "", waiting, most=most_waiting)
    _, _, memory = run_command(bundle_command("train_autoencoder", train_size=32, val_size=2, epochs=1))
    yield Row("autoencoder", "peak memory of a training, batch 8", "GB", memory, most, most=most)


def bench_diffusion(steps: int = 2) -> Iterator[Row]:
    """Compare a training step of the second stage, a volume seen, with the tutorial's."""
    batch = load_config("train_diffusion", initialize=False).get("train_batch_size")
    config = load_config("train_diffusion", train_size=batch * steps, val_size=8, epochs=1, val_interval=1000)
    volumes, autoencoder = config.get_parsed_content("train#volumes"), config.get_parsed_content("autoencoder")
    few = [volumes[i] for i in range(32)]
    encode = time_side_by_side({"encode": lambda: EncodedLatents(few, autoencoder).latents})["encode"] / len(few)
    seconds, reference, _ = alternate(config.get_parsed_content("train#trainer").run, "reference_diffusion.py")
    epochs, size = (load_config("train_diffusion", initialize=False).get(key) for key in ("epochs", "train_size"))
    passes = epochs * size / load_config("train_diffusion").get_parsed_content("encode_size")
    step = seconds / (batch * steps)
    yield Row(
        "diffusion",
        "a volume seen in training",
        "ms",
        (step + encode / passes) * 1e3,
        reference / 8 * 1e3,
        least_ratio=20,
        note=f"{step * 1e3:.2f} ms for the step and {encode * 1e3:.1f} for encoding, once in {passes:g} passes; "
        f"ours in batches of {batch}, the reference in batches of 8",
    )
