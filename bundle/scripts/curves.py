"""What a training shows in TensorBoard, curves, slices and two overviews, and how to read it back and draw it."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from monai.engines import Workflow
from monai.utils import is_scalar
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from .figures import slices_image

# it tells of every file that it has read to its end
logging.getLogger("tensorboard").setLevel(logging.WARNING)


def write_epoch(engine: Workflow, writer: SummaryWriter, group: str, attributes: Sequence[str] = ()) -> None:
    """Write an epoch's metrics under one group of tags: an ``epoch_event_writer`` of ``TensorBoardStatsHandler``.

    TensorBoard puts the tags with the same word before a slash into one section; MONAI's default has no such word.

    Args:
        engine: whose metrics to write, at its epoch.
        writer: where to write.
        group: the word before the slash.
        attributes: names in ``engine.state`` to write as well.
    """
    values = {**engine.state.metrics, **{name: getattr(engine.state, name) for name in attributes}}
    for name, value in values.items():
        if is_scalar(value):
            writer.add_scalar(f"{group}/{name}", value, engine.state.epoch)
    writer.flush()


class TensorBoardSlices:
    """Shows three orthogonal slices of volumes in TensorBoard, after the first batch of each validation.

    Args:
        writer: where to write.
        volumes: for each tag a function from the engine to volumes (B, 1, D, H, W), the first of which are shown.
        count: how many of a batch to show.
    """

    def __init__(
        self, writer: SummaryWriter, volumes: Mapping[str, Callable[[Workflow], torch.Tensor]], count: int = 2
    ) -> None:
        self.writer = writer
        self.volumes = volumes
        self.count = count

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, iteration: iteration == 1), self)

    @torch.no_grad()
    def __call__(self, engine: Workflow) -> None:
        """Write the slices, at the engine's epoch."""
        for tag, get in self.volumes.items():
            images = [slices_image(volume) for volume in get(engine)[: self.count]]
            self.writer.add_image(tag, torch.cat(images, dim=1), engine.state.epoch)


class TensorBoardOverview:
    """Fills the pages Custom Scalars and HParams of TensorBoard for a training.

    The HParams page sets a run's settings beside the last values of its curves, so that it follows a training while it
    runs, and a metric that was never measured stays empty. ``SummaryWriter.add_hparams`` would write such values once,
    into a run of its own that then stands beside this one in every list.

    Args:
        writer: where to write.
        layout: charts by title, by heading, as ``SummaryWriter.add_custom_scalars`` takes them. Tags are regular
            expressions that match from the start.
        settings: what the run was started with.
        compared: names of the settings to show. TensorBoard takes this list and the next from one of the runs that it
            finds; so both are the same for each stage, and name what only another has as well.
        metrics: tags of the curves to set beside them.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        layout: Mapping[str, Mapping[str, Sequence[Any]]],
        settings: Mapping[str, Any],
        compared: Sequence[str],
        metrics: Sequence[str],
    ) -> None:
        self.writer = writer
        self.layout = layout
        # a setting that this stage lacks is a number
        listed = {name: settings.get(name, 0) for name in compared}
        self.experiment, _, self.session_end = hparams(listed, dict.fromkeys(metrics))
        _, self.session_start, _ = hparams({name: settings[name] for name in compared if name in settings}, {})

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Workflow) -> None:
        """Write the layout, the settings, and what to show beside them."""
        self.writer.add_custom_scalars(self.layout)
        self._write(self.experiment, self.session_start)

    def finish(self, engine: Workflow) -> None:
        """Mark the run as complete."""
        self._write(self.session_end)

    def _write(self, *summaries: Any) -> None:
        if self.writer.file_writer is None:  # closed already: a federation may end a client in the middle of a round
            return
        for summary in summaries:
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()


# The steps of a curve, in order, and its values there.
Curve = tuple[np.ndarray, np.ndarray]


def read_events(
    folder: str | os.PathLike, frames: int = 12
) -> tuple[dict[str, dict[str, Curve]], dict[int, dict[str, bytes]]]:
    """Read what a training showed in TensorBoard.

    Args:
        folder: where its ``SummaryWriter`` wrote.
        frames: how many pictures of each tag to keep at most; the last is always among them.

    Returns:
        Curves by name, by group (the word before the slash of a tag), and PNG files by name, by epoch. Empty when there
        is no such folder.
    """
    if not Path(folder).is_dir():
        return {}, {}
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: frames}).Reload()
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
