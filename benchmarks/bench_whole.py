"""Both trainings as a whole: how long they take, and the memory at other batch sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import torch
from measure import Row, bundle_command, load_config, run_command


def bench_whole() -> Iterator[Row]:
    """Run both default trainings one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        first, weights = f"{folder}/first", f"{folder}/first/model_autoencoder.pt"
        commands = [
            bundle_command("train_autoencoder", output_dir=first),
            bundle_command("train_diffusion", output_dir=f"{folder}/second", autoencoder_path=weights),
        ]
        minutes = [run_command(command)[1] / 60 for command in commands]
    note = "autoencoder {:.1f}, diffusion {:.1f}".format(*minutes)
    most = 15 if torch.cuda.is_available() else 60
    yield Row("whole training", "both stages at their defaults, one run", "min", sum(minutes), most=most, note=note)


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
