"""Pictures of volumes: three orthogonal slices a volume."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from matplotlib.figure import Figure, FigureBase
from monai.engines import Workflow
from monai.utils import CommonKeys
from PIL import Image
from torch.utils.data import Dataset

from .measurement import measure_values

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


def draw_volumes(
    figure: FigureBase, items: Sequence[Mapping[str, torch.Tensor]], titles: Sequence[str], across: int
) -> None:
    """Draw volumes into a figure; the arguments as for ``plot_volumes``."""
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
    draw_volumes(figure, items, titles, across)
    save_figure(figure, path, dpi=110, bbox_inches="tight")


def save_figure(figure: Figure, path: str | os.PathLike, **options: Any) -> None:
    """Write a figure as a PNG with a palette, half as large as matplotlib's own.

    A palette of 256 holds every grey value of the slices as it is; fewer would draw edges into smooth reconstructions.
    Where a figure has colours too, theirs are kept apart, and the greys move by a value or two.

    Args:
        figure: what to write.
        path: the file; its folder is made.
        options: of ``Figure.savefig``.
    """
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", **options)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(drawing).convert("RGB")
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    picture.quantize(256, method=method, kmeans=1, dither=dither).save(path, optimize=True)


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


def plot_pairs(generated: Dataset, real: Dataset, count: int, path: str | os.PathLike) -> None:
    """Draw the first volumes of two datasets beside each other: ``count`` of each at most, as ``plot_volumes`` does."""
    count = min(count, len(generated), len(real))  # type: ignore[arg-type]
    pairs = [{"generated": generated[i][CommonKeys.IMAGE], "real": real[i][CommonKeys.IMAGE]} for i in range(count)]
    plot_volumes(pairs, [""] * count, path)


class ReconstructionPicture:
    """Draws the first volumes of an evaluation: image, noise-free signal if known, reconstruction, and a draw.

    Args:
        path: the PNG to write.
        count: how many volumes to show, at most a batch.
    """

    def __init__(self, path: str | os.PathLike, count: int = 4) -> None:
        self.path = path
        self.count = count

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator whose output is that of ``ReconstructionScores``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, iteration: iteration == 1), self)

    def __call__(self, engine: Workflow) -> None:
        """Draw the first batch."""
        output = engine.state.output
        names = {"image": "image", "oracle": "signal", "reconstruction": "reconstruction", "sample": "draw"}
        rows = [
            {shown: output[name][i] for name, shown in names.items() if name in output}
            for i in range(min(self.count, len(output["image"])))
        ]
        kinds = {"true_parameters": "true a = {:+.2f}, b = {:.2f}", "parameters": "decoded {:+.2f}, {:.2f}"}
        lines = [[text.format(*row) for row in output[kind].tolist()] for kind, text in kinds.items() if kind in output]
        titles = ["\n".join(line) for line in zip(*lines, strict=True)]
        plot_volumes(rows, titles[: len(rows)], self.path)
