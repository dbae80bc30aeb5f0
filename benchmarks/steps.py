"""Time and memory of a training step, at any setting: ``python benchmarks/steps.py train_autoencoder large lr=0.001``.

Config, overlays, then keys. It trains for an epoch of a few steps on the device that is there, without a validation
unless ``val_interval=1`` asks for one.
"""

from __future__ import annotations

import ast
import itertools
import resource
import statistics
import sys
import time

import psutil
import torch
from ignite.engine import Events
from measure import load_config


def measure_steps(*names: str, steps: int = 4, **settings: object) -> tuple[float, float]:
    """Train for some steps.

    Args:
        names: a config of training, and overlays.
        steps: how many; the first warms up.
        settings: keys.

    Returns:
        The median seconds of a step, and the bytes that the training took at most: of a GPU's memory; on a CPU, of the
        resident set beside what it had before.
    """
    batch = settings.get("train_batch_size") or load_config(*names, initialize=False).get("train_batch_size")
    quick = {"epochs": 1, "train_size": batch * steps, "val_size": 8, "val_interval": 1000}
    config = load_config(*names, **{**quick, **settings})
    trainer, device = config.get_parsed_content("train#trainer"), torch.device(config.get_parsed_content("device"))
    ends: list[float] = []  # of steps

    def note() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    before = psutil.Process().memory_info().rss
    trainer.run()
    seconds = statistics.median(end - start for start, end in itertools.pairwise(ends))
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated()
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    pairs = [word.partition("=") for word in sys.argv[1:] if "=" in word]
    values = {key: ast.literal_eval(value) if value[:1] in "-0123456789TF" else value for key, _, value in pairs}
    seconds, size = measure_steps(*[word for word in sys.argv[1:] if "=" not in word], **values)
    print(f"{' '.join(sys.argv[1:])}: {seconds:.3f} s a step, {size / 1e9:.2f} GB")
