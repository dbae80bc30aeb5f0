"""The figures of an evaluation: measured parameters against the law, slices of volumes, and control by requests."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure, FigureBase
from monai.utils import CommonKeys
from scipy import stats
from torch.utils.data import Dataset

from ..data.spheres import SphereLaw
from .control import Case
from .fidelity import standardise
from .measurement import PARAMETERS
from .slices import describe_sphere, draw_volumes, save_figure
from .validity import explain_invalid


def _plot_histograms(figure: FigureBase, uniform: Mapping[str, np.ndarray], law: SphereLaw) -> None:
    axes = figure.subplots(2, 3)
    for axis, (name, values) in zip(axes.flat, uniform.items(), strict=True):
        low, high, label = 0.0, 1.0, f"(c{name[-1]} - r) / (size - 2 r)"
        if not name.startswith("c"):
            low, high, label = getattr(law, f"{name}_min"), getattr(law, f"{name}_max"), name
        width = high - low
        bins = np.linspace(low - 0.1 * width, high + 0.1 * width, 25)
        shown = np.clip(low + width * values, bins[0], bins[-1])
        axis.hist(shown, bins=bins, density=True, color="0.7", label="measured")
        axis.plot([low, low, high, high], [0, 1 / width, 1 / width, 0], color="C3", label="true density")
        axis.set_xlabel(label)
        axis.set_yticks([])
    axes[0, 0].legend(fontsize=7)


def _plot_quantiles(figure: FigureBase, uniform: Mapping[str, np.ndarray]) -> None:
    axis = figure.subplots()
    for name, values in uniform.items():
        label = f"(c{name[1]} - r) / (size - 2 r)" if name.startswith("c") else name
        axis.plot((np.arange(len(values)) + 0.5) / len(values), np.sort(values), label=label, linewidth=1.2)
    # where 95% of samples of the law stay, along their whole length
    band = stats.kstwo.isf(0.05, len(values))
    axis.fill_between([0, 1], [-band, 1 - band], [band, 1 + band], color="0.9", label="95% of samples of the law")
    axis.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    axis.set(xlim=(0, 1), ylim=(-0.1, 1.1), xlabel="quantile of the law", ylabel="quantile measured", aspect="equal")
    axis.legend(fontsize=7)


def plot_fidelity(
    measured: Mapping[str, np.ndarray], volumes: Dataset, law: SphereLaw, path: str | os.PathLike, count: int = 4
) -> None:
    """Draw volumes against the law: histograms, quantiles, and slices of typical volumes and of the worst.

    Args:
        measured: arrays of shape (N,), as ``SphereMetric`` gives them; each is shown on the scale of the law, the
            centre as (c - r) / (size - 2 r).
        volumes: the N volumes themselves, (1, D, H, W) under ``CommonKeys.IMAGE``.
        law: the true distribution.
        path: the PNG to write; its folder is made.
        count: how many typical volumes (those in the middle by their Dice with a ball) and how many of the worst
            (those that are no valid spheres, then the lowest Dice).
    """
    uniform = standardise(measured, law)
    filled = np.isfinite(np.stack(list(uniform.values()))).all(axis=0)
    figure = Figure(figsize=(13, 5 + 1.35 * count), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[5, 1.35 * count])
    if filled.any():
        left, right = above.subfigures(1, 2, width_ratios=[2, 1.2])
        _plot_histograms(left, {name: values[filled] for name, values in uniform.items()}, law)
        _plot_quantiles(right, {name: values[filled] for name, values in uniform.items()})
    reasons = [reason.partition(":")[0] for reason in explain_invalid(measured, law)]
    valid = np.array([reason == "" for reason in reasons])
    order = np.lexsort((measured["dice"], valid))
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    rows = {"typical": order[middle : middle + count], "worst": order[:count]}
    items, titles = [], []
    # side by side: a typical one, one of the worst
    for pair in zip(*rows.values(), strict=True):
        for kind, i in zip(rows, pair, strict=True):
            items.append({"": volumes[int(i)][CommonKeys.IMAGE]})
            sphere = describe_sphere({name: measured[name][i] for name in PARAMETERS})
            title = textwrap.fill(reasons[i], 24) or kind
            titles.append(f"{title}\n{sphere}\nDice {measured['dice'][i]:.3f}")
    draw_volumes(below, items, titles, across=2)
    save_figure(figure, path, dpi=100)


def plot_control(cases: Sequence[Case], path: str | os.PathLike) -> None:
    """Draw how well requests are obeyed and whether the rest follows the law, and what guidance does to both.

    Args:
        cases: as ``evaluate_control`` returns them. The guidance of those that ask for the same is shown at the right.
        path: the PNG to write; its folder is made.
    """
    plain = [case for case in cases if case.guidance == 1]
    figure = Figure(figsize=(15, 5), layout="constrained")
    control, calibration, guided = figure.subplots(1, 3)
    for axis, kind in ((control, "rmse"), (calibration, "ks")):
        axis.axhline(1, color="C3", linewidth=0.8)
        for name in PARAMETERS:
            shares = [
                case.share(f"{kind}_{name}") if (name in case.asked) == (kind == "rmse") else None for case in plain
            ]
            shown = [(i, share) for i, share in enumerate(shares) if share is not None]
            axis.plot(*zip(*shown, strict=True) if shown else ([], []), "o", label=name, alpha=0.8)
        axis.set_xticks(range(len(plain)), [case.label for case in plain], rotation=45, ha="right", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, ncols=2)
    control.set(title="control: what was asked", ylabel="root mean square error / its limit")
    calibration.set(title="calibration: what was free", ylabel="KS statistic / its limit")
    groups = [[other for other in cases if other.asked == case.asked] for case in plain]
    for i, group in enumerate(group for group in groups if len(group) > 1):
        group = sorted(group, key=lambda case: case.guidance)
        for kind, line, names in (("rmse", "-", group[0].asked), ("ks", "--", group[0].free)):
            worst = [max((case.share(f"{kind}_{name}") or 0.0 for name in names), default=0.0) for case in group]
            what = "error asked" if kind == "rmse" else "KS free"
            guided.plot(
                [case.guidance for case in group], worst, f"o{line}", color=f"C{i}", label=f"{group[0].label}: {what}"
            )
    guided.axhline(1, color="C3", linewidth=0.8)
    guided.set(title="guidance", xlabel="guidance; 1 is none", ylabel="largest / its limit")
    if len(guided.lines) > 1:
        guided.legend(fontsize=7)
    save_figure(figure, path, dpi=100)
