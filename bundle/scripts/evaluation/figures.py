"""The figures of an evaluation: measured parameters against the law, slices of volumes, and control by requests."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure, FigureBase
from monai.utils import CommonKeys
from scipy import stats
from torch.utils.data import Dataset

from ..data.spheres import PARAMETERS, SphereLaw
from .control import Case, Control
from .fidelity import standardise
from .slices import describe_sphere, draw_volumes, save_figure
from .validity import explain_invalid


def _plot_histograms(figure: FigureBase, uniform: Mapping[str, np.ndarray], law: SphereLaw) -> None:
    axes = figure.subplots(2, 3)
    for axis in axes.flat[len(uniform) :]:
        axis.remove()
    for axis, (name, values) in zip(axes.flat, uniform.items(), strict=False):
        low, high, label = 0.0, 1.0, f"(c{name[-1]} - r) / (size - 2 r)"
        if not name.startswith("c"):
            (low, high), label = law.bounds(name), name
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
        measured: arrays of shape (N,), as ``measure_dataset`` gives them; each is shown on the scale of the law, the
            centre as (c - r) / (size - 2 r).
        volumes: the N volumes themselves, (1, D, H, W) under ``CommonKeys.IMAGE``.
        law: the true distribution.
        path: the PNG to write; its folder is made.
        count: how many typical volumes (those in the middle by their Dice with a ball) and how many of the worst
            (those that are no valid spheres, then the lowest Dice).
    """
    # not those that the law fixes; none at all where no volume could be measured
    uniform = {name: values for name, values in standardise(measured, law).items() if np.isfinite(values).any()}
    figure = Figure(figsize=(13, 5 + 1.35 * count), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[5, 1.35 * count])
    if uniform:
        filled = np.isfinite(list(uniform.values())).all(axis=0)
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


def plot_control(control: Control, path: str | os.PathLike) -> None:
    """Draw how well requests are obeyed and whether the rest follows the law, and what guidance does to both.

    Args:
        control: as ``evaluate_control`` returns it. What was asked for with several guidances is shown at the right.
        path: the PNG to write; its folder is made.
    """
    shown = [(case.label, case) for case in control.cases if case.guidance == 1]
    columns = [*shown, ("real spheres", control.real)]
    figure = Figure(figsize=(15, 5), layout="constrained")
    asked, free, guided = figure.subplots(1, 3)
    for axis, kind in ((asked, "rmse"), (free, "ks")):
        axis.axhline(1, color="C3", linewidth=0.8)
        for name in PARAMETERS:
            told = [case is control.real or (name in case.asked) == (kind == "rmse") for _, case in columns]
            shares = [case.share(f"{kind}_{name}") if t else np.nan for t, (_, case) in zip(told, columns, strict=True)]
            axis.plot(shares, "o", label=name, alpha=0.8)
        axis.set_xticks(range(len(columns)), [label for label, _ in columns], rotation=45, ha="right", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, ncols=2)
    asked.set(title="control: what was asked", ylabel="root mean square error / its limit")
    free.set(title="calibration: what was free", ylabel="KS statistic / its limit")
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in sorted(control.cases, key=lambda case: case.guidance):
        groups.setdefault(case.asked, []).append(case)
    for i, group in enumerate(group for group in groups.values() if len(group) > 1):
        for kind, line, names in (("rmse", "-", group[0].asked), ("ks", "--", group[0].free)):
            worst = [max((case.share(f"{kind}_{name}") for name in names), default=np.nan) for case in group]
            label = f"{group[0].label}: {'error asked' if kind == 'rmse' else 'KS free'}"
            guided.plot([case.guidance for case in group], worst, f"o{line}", color=f"C{i}", label=label)
    guided.axhline(1, color="C3", linewidth=0.8)
    guided.set(title="guidance", xlabel="guidance; 1 is none", ylabel="largest / its limit")
    if len(guided.lines) > 1:
        guided.legend(fontsize=7)
    save_figure(figure, path, dpi=100)
