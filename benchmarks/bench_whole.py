"""Both trainings as a whole: how long they take, and the memory at other batch sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from bench_training import encode_seconds
from measure import Row, bundle_command, load_config, run_command, time_side_by_side


def bench_whole(steps: int = 8) -> Iterator[Row]:
    """Add up the default trainings from parts that are measured here: steps, encoding, validation."""
    first = load_config("train_autoencoder", train_size=8 * steps, epochs=1, val_interval=1000)
    latents = 2 * load_config("train_diffusion", initialize=False).get("train_batch_size")
    second = load_config("train_diffusion", train_size=latents, val_size=256, epochs=1, val_interval=1000)
    seconds = time_side_by_side(
        {
            "step": first.get_parsed_content("train#trainer").run,
            "validation": first.get_parsed_content("validate#evaluator").run,
            "latents": second.get_parsed_content("train#trainer").run,
        }
    )
    config = load_config("train_autoencoder")
    epoch = config.get("train_size") / config.get("train_batch_size") * seconds["step"] / steps
    minutes = {"autoencoder": config.get("epochs") * (epoch + seconds["validation"]) / 60}
    config = load_config("train_diffusion")
    encode, seen = encode_seconds(second), seconds["latents"] / latents
    seconds_of_latents = config.get("epochs") * config.get("train_size") * seen
    minutes["diffusion"] = (config.get_parsed_content("encode_size") * encode + seconds_of_latents) / 60
    most = 15 if torch.cuda.is_available() else 60
    note = ", ".join(f"{name} {value:.0f}" for name, value in minutes.items())
    note += "; from parts measured here"
    yield Row("whole training", "both stages at their defaults", "min", sum(minutes.values()), most=most, note=note)


def bench_memory() -> Iterator[Row]:
    """Measure the peak memory of each stage's training at several batch sizes."""
    cuda = torch.cuda.is_available()
    for config in ("train_autoencoder", "train_diffusion"):
        for batch in (8, 16, 32):
            command = bundle_command(config, train_size=2 * batch, train_batch_size=batch, val_size=2, epochs=1)
            if config == "train_diffusion":
                command += ["--val_interval", "1"]
            _, _, memory = run_command(command)
            most = 6 if batch == 8 and not cuda else None
            yield Row("whole training", f"peak host memory, {config}, batch {batch}", "GB", memory, most=most)
    if cuda:
        for config in ("train_autoencoder", "train_diffusion"):
            settings = {"train_size": 64, "val_size": 2, "epochs": 1, "val_interval": 1000, "precision": "float16"}
            trainer = load_config(config, train_batch_size=8, **settings).get_parsed_content("train#trainer")
            torch.cuda.reset_peak_memory_stats()
            trainer.run()
            memory = torch.cuda.max_memory_allocated() / 1e9
            yield Row("whole training", f"peak GPU memory, {config}, float16, batch 8", "GB", memory, most=12)
