"""Everything that is measured about speed: ``make benchmark`` prints the table, and saves it with a figure.

Ratios are measured side by side in one run, on one machine, for the same work.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from commands import bench_commands, bench_validation
from growth import bench_growth
from measure import BUNDLE, RUNS, Row
from recipes import read_results
from sampling import bench_sampling
from spheres import bench_spheres
from training import bench_autoencoder, bench_diffusion
from whole import bench_memory, bench_whole

SECTIONS: dict[str, Callable[[], Iterable[Row]]] = {
    "spheres": bench_spheres,
    "autoencoder": bench_autoencoder,
    "diffusion": bench_diffusion,
    "sampling": bench_sampling,
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
    verdict = f"MISSES: {'; '.join(row.misses)}" if row.misses else "ok" if aim or row.least_share else ""
    texts = f"{row.ours:>9.4g} {row.unit:<12} {reference:>9} {ratio:>7} {aim:>9} {share:>6}  {verdict}"
    return f"{row.what:<74} {texts}".rstrip() + (f"\n    {row.note}" if row.note else "")


def plot_rows(rows: list[Row], path: Path) -> None:
    """Draw the ratios beside their aims, the growth of costs, and fidelity against compute."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(18, 5), layout="constrained", width_ratios=(2, 1.5, 1))
    compared = [row for row in rows if row.ratio is not None and row.least_ratio][::-1]
    names = [f"{row.section}: {row.what}" for row in compared]
    left.barh(names, [row.ratio or 0 for row in compared], color="tab:blue", label="measured")
    left.scatter([row.least_ratio or 0 for row in compared], names, marker="|", s=400, color="black", label="aim")
    left.set(xscale="log", xlim=(1, None), xlabel="times faster than the reference")
    left.legend(loc="lower right")
    for row in rows:
        if row.points:
            sizes, costs = zip(*row.points, strict=True)
            middle.loglog(sizes, costs, marker="o", label=f"{row.what}: {row.ours:.2f}")
    middle.set(xlabel="size", ylabel="seconds", title="growth, with the exponent")
    if middle.lines:
        middle.legend(fontsize="x-small")
    recipes = read_results()["recipes"]
    labels = {"flow, 25, a quarter of the steps": 512, "flow, 25": 2048}
    released = json.loads((BUNDLE / "models" / "fidelity.json").read_text())["volumes"]
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name in ("ks_r", "ks_cx", "ks_cy", "ks_cz", "ks_a", "ks_b"):
        curves[name] = [(steps, recipes[label]["volumes"][name]) for label, steps in labels.items() if label in recipes]
        curves[name].append((24576, released[name]["value"]))
        right.loglog(*zip(*curves[name], strict=True), marker="o", label=name)
    invalid = [(steps, 1 - recipes[label]["volumes"]["valid"]) for label, steps in labels.items() if label in recipes]
    invalid.append((24576, 1 - released["valid"]["value"]))
    right.loglog(*zip(*invalid, strict=True), marker="s", color="black", label="share not valid")
    right.axhline(0.06, color="black", linestyle=":", label="limit of KS")
    right.set(xlabel="steps of the diffusion model's training", title="fidelity against compute")
    right.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the sections that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="which to run; all by default")
    chosen = parser.parse_args().sections or list(SECTIONS)
    rows: list[Row] = []
    head = f"{'':<74} {'ours':>9} {'':<12} {'reference':>9} {'ratio':>7} {'aim':>9} {'share':>6}"

    def run() -> Iterator[Row]:
        for name in chosen:
            yield from SECTIONS[name]()

    print(f"{os.cpu_count()} cores, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}")
    print(head, flush=True)
    for row in run():
        rows.append(row)
        print(format_row(row), flush=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / "benchmark.json").write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
    plot_rows(rows, RUNS / "benchmark.png")
    print(f"saved to {RUNS}")


if __name__ == "__main__":
    main()
