"""How fast a dataset comes through a data loader."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Sequence

import torch
from monai.utils import CommonKeys
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..atomic import replacing

logger = logging.getLogger(__name__)


def benchmark_loader(
    dataset: Dataset, batch_size: int, path: str | os.PathLike, workers: Sequence[int] = (0, 1, 2, 4)
) -> list[dict[str, float]]:
    """Time one pass over a dataset for several numbers of workers, starting the workers not counted.

    Args:
        dataset: map-style, items with an image under ``CommonKeys.IMAGE``.
        batch_size: volumes a batch.
        path: the CSV file to save the table to; its folder is made.
        workers: numbers of worker processes to try; 0 loads in this process.

    Returns:
        A row for each number of workers: ``workers``, ``volumes_per_s``, ``mb_per_s`` (10^6 bytes of images).
    """
    rows = []
    with tqdm(total=len(workers) * len(dataset), desc="loading", unit="volume") as progress:  # type: ignore[arg-type]
        for count in workers:
            loader = DataLoader(dataset, batch_size=batch_size, num_workers=count, persistent_workers=count > 0)
            next(iter(loader))  # starts the workers, which then stay for the pass that counts
            volumes, size, start = 0, 0, time.perf_counter()
            for batch in loader:
                image: torch.Tensor = batch[CommonKeys.IMAGE]
                volumes += len(image)
                size += image.nbytes
                progress.update(len(image))
            seconds = time.perf_counter() - start
            rows.append({"workers": count, "volumes_per_s": volumes / seconds, "mb_per_s": size / seconds / 1e6})

    lines = [f"{'workers':>8} {'volumes/s':>12} {'MB/s':>10}"]
    lines += [f"{row['workers']:>8} {row['volumes_per_s']:>12.1f} {row['mb_per_s']:>10.1f}" for row in rows]
    logger.info("data loader, batches of %d, %d cores\n%s", batch_size, os.cpu_count(), "\n".join(lines))
    with replacing(path) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    logger.info("saved to %s", path)
    return rows
