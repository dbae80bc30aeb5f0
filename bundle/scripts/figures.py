"""Pictures of volumes: three orthogonal slices a volume."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure, FigureBase
from monai.utils import CommonKeys
from scipy import stats
from torch.utils.data import Dataset

from .fidelity import standardise
from .measurement import PARAMETERS, explain_invalid, measure_values
from .spheres import SphereLaw

logger = logging.getLogger(__name__)

# Grey values shown: nine tenths of the voxels of the widest sphere (b = 1.5) lie in it, and 0 is the middle grey.
WINDOW = (-3.0, 3.0)
PLANES = ("axial (z)", "coronal (y)", "sagittal (x)")


def orthogonal_slices(volume: torch.Tensor) -> list[np.ndarray]:
    """Cut a volume through its middle.

    Args:
        volume: shape (1, D, H, W), axes x, y, z.

    Returns:
        The slices across z, y and x, each transposed so that the earlier axis runs to the right.
    """
    array = volume[0].detach().float().cpu().numpy()
    x, y, z = (size // 2 for size in array.shape)
    return [array[:, :, z].T, array[:, y, :].T, array[x].T]


def slices_image(volume: torch.Tensor) -> torch.Tensor:
    """Lay the slices of a volume (1, D, H, W) side by side, as grey values in [0, 1]: shape (1, height, width)."""
    # the first row of an image is its top, where the figures have their last
    slices = [image[::-1] for image in orthogonal_slices(volume)]
    height = max(image.shape[0] for image in slices)
    low, high = WINDOW
    # a white line between the slices, white below those that are shorter
    padded = [
        np.pad((image.clip(low, high) - low) / (high - low), ((0, height - len(image)), (0, 1)), constant_values=1.0)
        for image in slices
    ]
    return torch.from_numpy(np.concatenate(padded, axis=1))[None]


def _draw_volumes(
    figure: FigureBase, items: Sequence[Mapping[str, torch.Tensor]], titles: Sequence[str], across: int
) -> None:
    names = list(items[0])
    width = len(names) * len(PLANES)
    rows, columns = -(-len(items) // across), width * min(across, len(items))
    axes = figure.subplots(rows, columns, squeeze=False)
    # in reading order, an item's slices follow those of the item before it
    for i, (item, title) in enumerate(zip(items, titles, strict=True)):
        axes.flat[i * width].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
        for j, name in enumerate(names):
            for k, image in enumerate(orthogonal_slices(item[name])):
                axis = axes.flat[i * width + j * len(PLANES) + k]
                shown = axis.imshow(image, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], origin="lower")
                axis.set_xticks([])
                axis.set_yticks([])
                if i < across:
                    axis.set_title(f"{name}\n{PLANES[k]}" if name else PLANES[k], fontsize=9)
    for axis in axes.flat[len(items) * width :]:
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=min(1.0, 2.0 / rows), label="voxel value", pad=0.01)


def plot_volumes(
    items: Sequence[Mapping[str, torch.Tensor]], titles: Sequence[str], path: str | os.PathLike, across: int = 1
) -> None:
    """Draw volumes as a picture: three slices for each volume of an item.

    Args:
        items: for each item its volumes (1, D, H, W) by name; all items have the same names.
        titles: a text for each item, at its left.
        path: the PNG to write; its folder is made.
        across: how many items side by side.
    """
    rows, columns = -(-len(items) // across), len(items[0]) * len(PLANES) * min(across, len(items))
    figure = Figure(figsize=(1.3 * columns + 1.5 * across + 1, 1.35 * rows + 0.5), layout="compressed")
    _draw_volumes(figure, items, titles, across)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def describe_sphere(parameters: Mapping[str, float]) -> str:
    """Put a sphere's parameters (``r``, ``cx``, ``cy``, ``cz``, ``a``, ``b``) into three lines."""
    return (
        f"r = {parameters['r']:.2f}\n"
        f"c = ({parameters['cx']:.1f}, {parameters['cy']:.1f}, {parameters['cz']:.1f})\n"
        f"a = {parameters['a']:+.2f}, b = {parameters['b']:.2f}"
    )


def describe_volume(values: Mapping[str, float]) -> str:
    """Put what ``measure_spheres`` or ``measure_values`` found in a volume into a few lines."""
    if "r" in values:
        return describe_sphere(values)
    return f"{values['voxels']:.0f} voxels\nmean {values['mean']:+.2f}, std {values['std']:.2f}"


def plot_dataset(dataset: Dataset, count: int, path: str | os.PathLike) -> None:
    """Draw the first volumes of a dataset; of spheres, their true parameters in the titles.

    Args:
        dataset: items with an image under ``CommonKeys.IMAGE`` and, as ``SphereDataset``'s, ``r``, ``c``, ``a``, ``b``.
        count: how many to draw, at most.
        path: the PNG to write; its folder is made.
    """
    items = [dataset[i] for i in range(min(count, len(dataset)))]  # type: ignore[arg-type]
    titles = []
    for item in items:
        if "r" in item:
            cx, cy, cz = item["c"].tolist()
            values = {**{key: float(item[key]) for key in "rab"}, "cx": cx, "cy": cy, "cz": cz}
        else:
            values = {name: float(value) for name, value in measure_values(item[CommonKeys.IMAGE][None]).items()}
        titles.append(describe_volume(values))
    plot_volumes([{"": item[CommonKeys.IMAGE]} for item in items], titles, path, across=2)
    logger.info("saved to %s", path)


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
    above, below = figure.subfigures(2, 1, height_ratios=[5, 1.35 * count])  # type: ignore[misc]
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
    _draw_volumes(below, items, titles, across=2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
