"""Both trainings as a whole: how long they take, and the memory at other batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from measure import Row, bundle_command, load_config, run_command, time_side_by_side

from scripts.latents import EncodedLatents


def bench_whole(steps: int = 8) -> Iterator[Row]:
    """Add up the default trainings from parts that are measured here: steps, encoding, validation."""
    first = load_config("train_autoencoder", train_size=8 * steps, epochs=1, val_interval=1000)
    second = load_config("train_diffusion", train_size=64 * steps, val_size=256, epochs=1, val_interval=1000)
    volumes, autoencoder = second.get_parsed_content("train#volumes"), second.get_parsed_content("autoencoder")
    few = list(itertools.islice(volumes, 4))
    seconds = time_side_by_side(
        {
            "step": first.get_parsed_content("train#trainer").run,
            "validation": first.get_parsed_content("validate#evaluator").run,
            "latents": second.get_parsed_content("train#trainer").run,
            "encode": lambda: EncodedLatents(few, autoencoder),
        }
    )
    minutes = {}
    for name, overlays in {"autoencoder": (), "decoder": ("train_decoder",)}.items():
        config = load_config("train_autoencoder", *overlays)
        epoch = config.get("train_size") / config.get("train_batch_size") * seconds["step"] / steps
        minutes[name] = config.get("epochs") * (epoch + seconds["validation"]) / 60
    config = load_config("train_diffusion")
    encode, seen = seconds["encode"] / 32, seconds["latents"] / (64 * steps)
    minutes["diffusion"] = config.get("train_size") * (encode + config.get("epochs") * seen) / 60
    most = 15 if torch.cuda.is_available() else 180
    note = ", ".join(f"{name} {value:.0f}" for name, value in minutes.items())
    note += "; from parts measured here, the decoder's steps counted as whole ones"
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
