"""Growth: how each cost rises with the size of a volume, the batch and the steps of the sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from bench_sampling import make_generator
from measure import Row, load_config, time_side_by_side
from scipy import stats


def fit_exponent(points: Sequence[tuple[float, float]]) -> float:
    """Fit the p of cost = constant x size^p, by least squares on logarithms."""
    sizes, costs = np.log(np.array(points)).T
    return float(stats.linregress(sizes, costs).slope)


def step_seconds(batch: int, size: int = 64, steps: int = 2) -> float:
    """Time a training step of the autoencoder."""
    settings = {"train_size": batch * steps, "train_batch_size": batch, "epochs": 1, "val_interval": 1000}
    trainer = load_config("train_autoencoder", image_size=size, **settings).get_parsed_content("train#trainer")
    return time_side_by_side({"step": trainer.run}, rounds=3)["step"] / steps


def sample_seconds(batch: int, size: int = 64, steps: int = 10) -> float:
    """Time the generation of a batch."""
    generator = make_generator(image_size=size, num_inference_steps=steps)
    noise = torch.randn(batch, 32, *[size // 32] * 3, device=generator.scale_factor.device)
    # brought back, so that a GPU has to be done
    return time_side_by_side({"sample": lambda: generator(noise).cpu()}, rounds=3)["sample"]


def sphere_seconds(size: int, count: int = 32) -> float:
    """Time the making of a volume."""
    dataset = load_config("data", image_size=size, benchmark_size=count).get_parsed_content("dataset")
    return time_side_by_side({"spheres": lambda: [dataset[i] for i in range(count)]})["spheres"] / count


def bench_growth() -> Iterator[Row]:
    """Measure the costs along each axis and fit their exponents."""
    sizes, batches, steps = (32, 64, 96, 128), (1, 2, 4, 8, 16), (5, 10, 25, 50)
    curves = {
        "a sphere, by voxels along an axis": [(n, sphere_seconds(n)) for n in sizes],
        "an autoencoder step of 2, by voxels along an axis": [(n, step_seconds(2, n)) for n in sizes],
        "generating 2 volumes, by voxels along an axis": [(n, sample_seconds(2, n)) for n in sizes],
        "an autoencoder step, by batch": [(n, step_seconds(n)) for n in batches],
        "generating, by batch": [(n, sample_seconds(n)) for n in batches],
        "generating 16 volumes, by steps of the sampler": [(n, sample_seconds(16, steps=n)) for n in steps],
    }
    for what, points in curves.items():
        note = ", ".join(f"{n}: {seconds:.3g} s" for n, seconds in points)
        yield Row("growth", what, "exponent", fit_exponent(points), note=note, points=points)
