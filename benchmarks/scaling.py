"""What 8, 64 and 512 GPUs would bring: a simulation of training steps, from what was measured on one.

``python benchmarks/scaling.py`` prints the tables of ``bundle/docs/scaling.md``; with ``--write`` it puts them there. A
step of many GPUs takes as long as the slowest of them computes, and then they exchange gradients. At the end of an
epoch one writes a checkpoint, while the others wait.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import load_config

PAGE = Path(__file__).resolve().parents[1] / "bundle" / "docs" / "scaling.md"
SIZES, GPUS = (64, 128, 256), (1, 8, 64, 512)

# Measured on one H200, in bf16: bundle/docs/scaling.md.
KERNELS = 0.014  # s that the kernels of a step of 8 volumes of 64^3 take, as a CUDA graph
# The flow was measured with one residual block. With two it has 299 operations instead of 237, and 4.93 million weights
# instead of 3.59. The first is assumed to count for the start of kernels, the second for the kernels.
STARTED, MULTIPLIED = 299 / 237, 4.93 / 3.59
# s of a step as the bundle runs it, until the processor has started them
START = {"volumes": 0.039, "latents": 0.018 * STARTED}
# s of a step on two CPU cores, for a volume and for a latent of 32 x 2^3; the autoencoder is that of KERNELS
CPU_VOLUME, CPU_LATENT = 1.07 / 8, 0.75e-3 * MULTIPLIED
SPHERE = {64: 0.35e-3, 128: 2.3e-3, 256: 2.3e-3 * 2**2.3}  # s of one core for a volume; the last by the exponent

# Assumed. Bandwidths are those of NVIDIA's data sheets of the DGX H200, of one direction.
NODE = 8  # GPUs of a machine
NVLINK, INFINIBAND = 450e9, 50e9  # bytes/s of a GPU, within a machine and between two (one adapter of 400 Gb/s)
LATENCY, HOP_NVLINK, HOP_INFINIBAND = 8.4e-6, 3.4e-6, 14e-6  # s, from NCCL's own model (tuning.cc, ring, "simple")
CORES = 16  # of a machine for each GPU; they make volumes
SPREAD = 0.05  # standard deviation of a GPU's step, as a share of it
DISK = 1e9  # bytes/s of a checkpoint
STEPS = 500  # that are simulated


@dataclass
class Stage:
    """A training.

    Args:
        title: for readers.
        config: its config.
        network: what it trains, an id in the config.
        items: what a batch holds.
        item_seconds: kernels of a GPU for one item of 64^3 voxels; they grow with the voxels.
        copies: times that a checkpoint holds the weights: themselves, Adam's moments, their average.
        grows: whether each GPU has the whole of the config's batch, instead of a share.
    """

    title: str
    config: str
    network: str
    items: str
    item_seconds: float
    copies: int
    grows: bool


FIRST = ("train_autoencoder", "autoencoder_def", "volumes", KERNELS / 8, 3)
SECOND = ("train_diffusion", "diffusion_def", "latents", KERNELS / 8 * CPU_LATENT / CPU_VOLUME, 4)
STAGES = (
    Stage("First stage, the recipe's batch shared", *FIRST, grows=False),
    Stage("First stage, the recipe's batch on each GPU", *FIRST, grows=True),
    Stage("Second stage, the recipe's batch shared", *SECOND, grows=False),
)


def all_reduce(size: int, gpus: int) -> float:
    """Seconds that GPUs take to add up messages of so many bytes, in a ring: each passes 2 (n - 1) / n of them on."""
    if gpus == 1:
        return 0.0
    between = 2 * (math.ceil(gpus / NODE) - 1)  # of the ring's steps, those from one machine to another
    latency = LATENCY + between * HOP_INFINIBAND + (2 * (gpus - 1) - between) * HOP_NVLINK
    return 2 * (gpus - 1) / gpus * size / (INFINIBAND if between else NVLINK) + latency


def simulate(stage: Stage, parameters: int, batch: int, length: int, size: int, gpus: int) -> dict[str, float]:
    """Simulate an epoch of ``length`` items on volumes of ``size``^3; returns its seconds by what they go into."""
    items, steps = batch / gpus, length / batch
    # larger volumes have larger blocks of voxels (large.json), and the same latents
    growth = (size / 64) ** 3 if stage.items == "volumes" else 1
    kernels = items * stage.item_seconds * growth
    mean = max(kernels, START[stage.items])
    drawn = np.random.default_rng(0).normal(mean, SPREAD * mean, (STEPS, gpus))
    slowest = float(drawn.max(axis=1).mean()) if gpus > 1 else mean
    # the next batch is made meanwhile
    data = items * SPHERE[size] / CORES if stage.items == "volumes" else 0.0
    gradients = all_reduce(4 * parameters, gpus)
    parts = {"computing": kernels, "starting kernels": mean - kernels, "the slowest GPU": slowest - mean}
    parts |= {"gradients": gradients, "data": max(0.0, data - slowest - gradients)}
    seconds = {name: value * steps for name, value in parts.items()}
    return seconds | {"checkpoint": stage.copies * 4 * parameters / DISK}


def tabulate(stage: Stage) -> list[str]:
    """Lay out what is simulated of a stage as a table."""
    config = load_config(stage.config, "large", initialize=False)
    parameters = sum(parameter.numel() for parameter in config.get_parsed_content(stage.network).parameters())
    whole, length = config.get("train_batch_size"), config.get("train_size")
    names = ["voxels", "GPUs", "batch", "step, ms", "gradients, ms", f"{stage.items}/s", "efficiency", "epoch, s"]
    names += ["cores a GPU", "scans, GB/s"] * (stage.items == "volumes") + ["limit"]
    rows = [names, ["---"] * len(names)]
    for size in SIZES:
        alone = 0.0
        for gpus in GPUS:
            batch = whole * gpus if stage.grows else whole
            if gpus > batch:
                continue
            parts = simulate(stage, parameters, batch, length, size, gpus)
            seconds, steps = sum(parts.values()), length / batch
            rate = length / seconds
            alone = alone or rate
            step, gradients = (seconds - parts["checkpoint"]) / steps, parts["gradients"] / steps
            row = [f"{size}^3", f"{gpus}", f"{batch:,}", f"{step * 1e3:.0f}", f"{gradients * 1e3:.1f}", f"{rate:,.0f}"]
            row += [f"{rate / alone / gpus:.0%}", f"{seconds:,.{1 if seconds < 10 else 0}f}"]
            if stage.items == "volumes":
                row += [f"{rate / gpus * SPHERE[size]:.2f}", f"{rate * 4 * size**3 / 1e9:.1f}"]
            rows.append([*row, max(parts, key=parts.__getitem__)])
    message = f"{parameters / 1e6:.1f} million parameters: {4 * parameters / 1e6:.1f} MB of gradients a step, "
    message += f"{stage.copies * 4 * parameters / 1e6:.0f} MB a checkpoint."
    return [f"**{stage.title}.** {message}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def fill(text: str) -> str:
    """Return the page with the tables in their place."""
    tables = "\n".join(line for stage in STAGES for line in tabulate(stage))
    return re.sub(r"(<!-- scaling -->\n).*?(<!-- end -->)", rf"\g<1>{tables}\g<2>", text, flags=re.DOTALL)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(fill(PAGE.read_text()))
    else:
        print("\n".join(line for stage in STAGES for line in tabulate(stage)))
