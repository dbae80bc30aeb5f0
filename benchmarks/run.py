"""Everything that is measured about speed: ``make benchmark`` prints the table, and saves it with a figure.

Ratios are measured side by side in one run, on one machine, for the same work.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from bench_commands import bench_commands, bench_validation
from bench_exports import bench_exports
from bench_growth import bench_growth
from bench_sampling import bench_sampling
from bench_spheres import bench_spheres
from bench_training import bench_autoencoder, bench_diffusion
from bench_whole import bench_memory, bench_whole
from measure import RUNS, Row

SECTIONS: dict[str, Callable[[], Iterable[Row]]] = {
    "spheres": bench_spheres,
    "autoencoder": bench_autoencoder,
    "diffusion": bench_diffusion,
    "sampling": bench_sampling,
    "exports": bench_exports,
    "validation": bench_validation,
    "commands": bench_commands,
    "whole": bench_whole,
    "memory": bench_memory,
    "growth": bench_growth,
}


def format_row(row: Row) -> str:
    """Lay out a row of the table."""
    reference = "" if row.reference is None else f"{row.reference:.4g}"
    ratio = "" if row.ratio is None else f"{row.ratio:.1f}"
    aim = f">= {row.least_ratio:g}x" if row.least_ratio else f"<= {row.most:.4g}" if row.most is not None else ""
    share = "" if row.share is None else f"{row.share:.0%}"
    verdict = f"MISSES: {'; '.join(row.misses)}" if row.misses else "ok" if aim else ""
    texts = f"{row.ours:>9.4g} {row.unit:<12} {reference:>9} {ratio:>7} {aim:>9} {share:>6}  {verdict}"
    return "\n    ".join([f"{row.what:<74} {texts}".rstrip(), *([row.note] if row.note else [])])


def plot_rows(rows: list[Row], path: Path) -> None:
    """Draw the ratios beside their aims, and the growth of costs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 7), layout="constrained", width_ratios=(4, 3))
    compared = [row for row in rows if row.ratio is not None and row.least_ratio][::-1]
    names = [f"{row.section}: {row.what}" for row in compared]
    left.barh(names, [row.ratio or 0 for row in compared], color="tab:blue", label="measured")
    left.scatter([row.least_ratio or 0 for row in compared], names, marker="|", s=400, color="black", label="aim")
    left.set(xscale="log", xlim=(1, None), xlabel="times faster than the reference")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12))
    for row in rows:
        if row.points:
            right.loglog(*zip(*row.points, strict=True), marker="o", label=f"{row.what}: {row.ours:.2f}")
    right.set(xlabel="size", ylabel="seconds", title="growth, with the exponent")
    if right.lines:
        right.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.12))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the sections that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="which to run; all by default")
    chosen = parser.parse_args().sections or list(SECTIONS)
    path = RUNS / "benchmark.json"
    # sections that are not asked for keep what was measured of them before
    results = json.loads(path.read_text()) if path.exists() else {}
    print(f"{os.cpu_count()} cores, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}")
    print(f"{'':<74} {'ours':>9} {'':<12} {'reference':>9} {'ratio':>7} {'aim':>9} {'share':>6}", flush=True)
    for name in chosen:
        results[name] = []
        for row in SECTIONS[name]():
            results[name].append(row.as_dict())
            print(format_row(row), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    names = [field.name for field in fields(Row)]
    rows = [Row(**{name: row[name] for name in names}) for section in SECTIONS for row in results.get(section, [])]
    plot_rows(rows, RUNS / "benchmark.png")
    print(f"saved to {RUNS}")


if __name__ == "__main__":
    main()
