"""Spheres: one at a time, through a data loader, and as a batch on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from measure import RUNS, Row, load_config, time_side_by_side
from reference_spheres import draw_sphere
from torch.utils.data import default_collate

from scripts.tools.benchmark import benchmark_loader


def draw_batch(count: int, size: int, device: torch.device) -> torch.Tensor:
    """Draw a batch of the law in the README on one device, shape (count, 1, size, size, size)."""
    column = (count, 1, 1, 1)
    r = torch.empty(column, device=device).uniform_(size / 4, size / 2)
    x, y, z = (r + torch.rand(column, device=device) * (size - 2 * r) for _ in range(3))
    axis = torch.arange(size, device=device) + 0.5
    squares = (axis[:, None, None] - x) ** 2 + (axis[:, None] - y) ** 2 + (axis - z) ** 2
    a, b = torch.rand(column, device=device) - 0.5, torch.rand(column, device=device) + 0.5
    values = a + b * torch.randn(count, size, size, size, device=device)
    return torch.where(squares <= r * r, values, 0.0)[:, None]


def bench_spheres(volumes: int = 256) -> Iterator[Row]:
    """Compare the dataset with the textbook generator, and with its limit.

    The limit is drawing as many normals as there are voxels inside, with the faster generator, and zeroing the volume.
    """
    dataset = load_config("data", benchmark_size=volumes).get_parsed_content("dataset")
    inside = round(float(np.mean([int((dataset[i]["image"] != 0).sum()) for i in range(volumes)])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng, buffer = np.random.Generator(np.random.SFC64(0)), torch.empty(64**3)

    def repeat(function: Callable[[int], object]) -> Callable[[], None]:
        def call() -> None:
            for i in range(volumes):  # each result is let go, as in use: keeping it costs a page fault for every 4 kB
                function(i)

        return call

    items = [dataset[i] for i in range(8)]
    seconds = time_side_by_side(
        {
            "ours": repeat(dataset.__getitem__),
            "reference": repeat(lambda _: draw_sphere()),
            "torch": repeat(lambda _: torch.randn(inside)),
            "numpy": repeat(lambda _: rng.standard_normal(inside, dtype=np.float32)),
            "zero": repeat(lambda _: buffer.zero_()),
            "collate": lambda: [default_collate(items) for _ in range(volumes // 8)],
        }
    )
    torch.set_num_threads(threads)
    each = {name: value / volumes * 1e3 for name, value in seconds.items()}
    generator = min("torch", "numpy", key=lambda name: each[name])
    limit = each[generator] + each["zero"]
    yield Row(
        "spheres",
        "a sphere, one core",
        "ms",
        each["ours"],
        each["reference"],
        limit,
        note=f"limit {limit:.2f} ms ({generator}'s normals), {each['reference'] / limit:.1f} times the reference",
    )
    for row in benchmark_loader(dataset, batch_size=8, path=RUNS / "loader.csv", workers=(0, 1, 2)):
        workers, rate = row["workers"], row["volumes_per_s"]
        yield Row(
            "spheres",
            f"a sphere through the data loader, batches of 8, {workers} workers",
            "ms",
            1e3 / rate,
            limit=each["ours"] / max(workers, 1),
            note=f"{rate:.0f} volumes/s; limit: the rate of one core times the workers; "
            f"copying volumes into a batch alone takes {each['collate']:.2f} ms each",
        )
    if torch.cuda.is_available():
        device = torch.device("cuda:0")

        def batch() -> None:
            draw_batch(64, 64, device)
            torch.cuda.synchronize()

        rate = time_side_by_side({"batch": batch})["batch"] / 64 * 1e3
        yield Row("spheres", "a sphere of a batch of 64 on the GPU", "ms", rate, each["reference"])
