"""A training's TensorBoard events, read back and drawn."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

# The steps of a curve, in order, and its values there.
Curve = tuple[np.ndarray, np.ndarray]


def read_events(folder: str | os.PathLike) -> tuple[dict[str, dict[str, Curve]], dict[int, dict[str, bytes]]]:
    """Read what a training showed in TensorBoard.

    Args:
        folder: where its ``SummaryWriter`` wrote.

    Returns:
        Curves by name, by group (the word before the slash of a tag), and PNG files by name, by epoch, twelve of a name
        at most, the last among them. Empty when there is no such folder.
    """
    if not Path(folder).is_dir():
        return {}, {}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 12}).Reload()
    curves: dict[str, dict[str, Curve]] = {}
    for tag in events.Tags()[SCALARS]:
        group, _, name = tag.rpartition("/")
        # a resumed training repeats the steps after its checkpoint: the last value counts
        values = {point.step: point.value for point in events.Scalars(tag)}
        steps = sorted(values)
        curves.setdefault(group, {})[name] = np.array(steps), np.array([values[step] for step in steps])
    pictures: dict[int, dict[str, bytes]] = {}
    for tag in events.Tags()[IMAGES]:
        for image in events.Images(tag):
            pictures.setdefault(image.step, {})[tag.rpartition("/")[2]] = image.encoded_image_string
    return curves, dict(sorted(pictures.items()))


def plot_curves(curves: Mapping[str, Curve], last_step: int) -> str:
    """Draw curves, each in axes of its own; one named as another with ``_oracle`` behind it joins that one.

    Args:
        curves: as ``read_events`` returns them for a group.
        last_step: of the training; curves that end before it are those of epochs.

    Returns:
        An SVG.
    """
    names = [name for name in curves if name.removesuffix("_oracle") == name or name[: -len("_oracle")] not in curves]
    columns = 5
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * columns, 0.5 + 1.7 * rows))
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.045, right=0.99, bottom=0.45 / height, top=1 - 0.3 / height, wspace=0.35, hspace=0.65)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        steps, values = curves[name]
        if len(steps) > 100:  # the steps of a training: noisy, so that their moving average is drawn over them
            window = len(steps) // 25
            stride = -(-len(steps) // 1000)
            axis.plot(steps[::stride], values[::stride], color="C0", alpha=0.25, linewidth=0.8)
            smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
            axis.plot(steps[window - 1 :][::stride], smooth[::stride], color="C0", linewidth=1.4)
        else:
            axis.plot(steps, values, color="C0", linewidth=1.4, marker="o", markersize=2.5)
        if f"{name}_oracle" in curves:
            steps, best = curves[f"{name}_oracle"]
            axis.plot(steps, best, color="C1", linewidth=1.2, linestyle="--")
            axis.margins(y=0.2)  # room for the words
            axis.annotate(
                f"perfect denoiser: {best[-1]:.4g}",
                (steps[0], best[0]),
                (0, 2),
                textcoords="offset points",
                fontsize=7,
                color="C1",
            )
        axis.set_title(f"{name.replace('_', ' ')}: {values[-1]:.4g}", fontsize=9, loc="left")
        axis.set_xlabel("step" if steps[-1] == last_step else "epoch", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    drawing = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(drawing, format="svg", transparent=True)
    return drawing.getvalue()
