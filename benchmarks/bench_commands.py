"""Commands as a whole: time and memory of what a user types, and of the parts that make them wait."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measure import Row, bundle_command, load_config, run_command, time_side_by_side
from monai.metrics import SSIMMetric


def bench_commands() -> Iterator[Row]:
    """Time generation, the start of both trainings, and validation."""
    _, seconds, memory = run_command(bundle_command("inference"))
    yield Row("commands", "make generate: 8 volumes, after set-up", "s", seconds, most=6, note=f"{memory:.1f} GB")
    first_step = r"training[^:]*: \[1/"
    _, seconds, memory = run_command(bundle_command("train_autoencoder"), until=first_step)
    yield Row("commands", "autoencoder: start to first step", "s", seconds, most=10, note=f"{memory:.1f} GB")
    _, seconds, memory = run_command(
        bundle_command("train_diffusion", train_size=64, train_batch_size=64, val_size=8), until=first_step
    )
    note = f"{memory:.1f} GB; with 64 volumes to encode; the default's are a part of its training"
    yield Row("commands", "diffusion: start to first step", "s", seconds, most=10, note=note)
    _, seconds, memory = run_command(bundle_command("evaluate", num_samples=200))
    note = f"{memory:.1f} GB; 256 reconstructions, 200 volumes and 200 real spheres"
    yield Row("commands", "evaluate.json with 200 volumes", "s", seconds, most=300, note=note)


def bench_validation(rounds: int = 3) -> Iterator[Row]:
    """Time the validation of the first stage, and SSIM beside MONAI's dense windows."""
    config = load_config("train_autoencoder", train_size=8)
    evaluator = config.get_parsed_content("validate#evaluator")
    metric = config.get_parsed_content("validate#key_metric#ssim#metric_fn")
    dense = SSIMMetric(spatial_dims=3, win_size=7, data_range=10.0)
    images = next(iter(config.get_parsed_content("validate#dataloader")))["image"].to(evaluator.state.device)
    noisy = images + torch.randn_like(images)
    seconds = time_side_by_side(
        {"whole": evaluator.run, "ours": lambda: metric(noisy, images), "reference": lambda: dense(noisy, images)},
        rounds,
    )
    yield Row("commands", "SSIM of a volume, beside MONAI's", "s", seconds["ours"] / 8, seconds["reference"] / 8)
    _, _, memory = run_command(bundle_command("train_autoencoder", train_size=8, epochs=1))
    note = f"first stage, with its pictures; {memory:.1f} GB at most in a training of one step and one validation"
    yield Row("commands", "validation of 32 volumes", "s", seconds["whole"], note=note)
