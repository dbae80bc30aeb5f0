"""What a training shows while it runs: TensorBoard's curves and overviews, and the bar of its progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from ignite.metrics import Frequency
from monai.engines import Workflow
from monai.handlers import MLFlowHandler, TensorBoardStatsHandler
from monai.utils import CommonKeys, is_scalar
from monai.utils.enums import AdversarialKeys
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from .stability import Trainer, read_loss, read_parts

# The charts of each stage on TensorBoard's page Custom Scalars: titles under headings, with the tags of their curves,
# regular expressions that match from the start.
CHARTS: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = {
    "autoencoder": {
        "training": {
            "loss": ["train/loss$"],
            "loss, mean of an epoch": ["train/epoch_loss$"],
            "learning rate": ["train/learning_rate$"],
        },
        "reconstruction beside a perfect denoiser's": {
            "SSIM": ["validation/ssim$", "validation/ssim_oracle$"],
            "MSE": ["validation/mse$", "validation/mse_oracle$"],
            "PSNR": ["validation/psnr$", "validation/psnr_oracle$"],
        },
        "mean a and deviation b": {
            "root mean square error": ["validation/a_rmse$", "validation/b_rmse$"],
            "correlation": ["validation/a_correlation$", "validation/b_correlation$"],
        },
    },
    "diffusion": {
        "loss": {
            "training and validation, by epoch": ["train/epoch_loss$", "validation/val_loss$"],
            "training, by step": ["train/loss$"],
        },
        "training": {
            "learning rate": ["train/learning_rate$"],
            "volumes per second": ["train/volumes_per_s$"],
        },
    },
}

# What the page HParams compares: settings, and the tags of metrics. TensorBoard takes the lists of one of the runs that
# it finds; so they are the same for each stage, and name what only another has as well.
COMPARED = ("epochs", "kl_weight", "lr", "precision", "seed", "train_batch_size", "train_size")
COMPARED_METRICS = (
    "train/epoch_loss",
    "validation/val_loss",
    "validation/ssim_ratio",
    "validation/mse_ratio",
    "validation/dice",
    "validation/nll",
    "validation/a_rmse",
    "validation/b_rmse",
)


def write_epoch(engine: Engine, writer: SummaryWriter, group: str, attributes: Sequence[str] = ()) -> None:
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


class TrainingCurves:
    """Shows a training in TensorBoard: its curves, and the pages Custom Scalars and HParams.

    Of each step the loss, its parts and the learning rate; of each epoch the mean loss, the volumes per second and the
    skipped steps. The HParams page sets a run's settings beside the last values of its curves, so that it follows a
    training while it runs, and a metric that was never measured stays empty. ``SummaryWriter.add_hparams`` would write
    such values once, into a run of its own that then stands beside this one in every list.

    Args:
        writer: where to write; ``None`` for a process that draws no curves.
        stage: which of ``CHARTS`` to show.
        settings: what the run was started with.
        dtype: type of the networks' activations.
    """

    def __init__(
        self,
        writer: SummaryWriter | None,
        stage: str,
        settings: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self.writer = writer
        self.layout = {
            heading: {title: ["Multiline", tags] for title, tags in charts.items()}
            for heading, charts in CHARTS[stage].items()
        }
        settings = {**settings, "precision": str(dtype).removeprefix("torch.")}
        # a setting that this stage lacks is a number
        listed = {name: settings.get(name, 0) for name in COMPARED}
        self.experiment, _, self.session_end = hparams(listed, dict.fromkeys(COMPARED_METRICS))
        _, self.session_start, _ = hparams({name: settings[name] for name in COMPARED if name in settings}, {})

    def attach(self, engine: Trainer) -> None:
        """Register with a trainer."""
        Frequency(lambda output: len(output[CommonKeys.IMAGE])).attach(engine, "volumes_per_s")
        engine.state.epoch_loss_sum = 0.0
        engine.state_dict_user_keys.append("epoch_loss_sum")
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.average)
        if self.writer is None:
            return
        TensorBoardStatsHandler(
            summary_writer=self.writer,
            output_transform=partial(_read_scalars, engine),
            epoch_event_writer=lambda engine, writer: write_epoch(engine, writer, "train", ["skipped_steps"]),
        ).attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Workflow) -> None:
        """Write the layout, the settings, and what to show beside them."""
        assert self.writer is not None  # else nothing calls this
        self.writer.add_custom_scalars(self.layout)
        self._write(self.experiment, self.session_start)

    def average(self, engine: Trainer) -> None:
        """Average the loss over the epoch so far, also over steps that another process took before it was stopped."""
        step = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        before = engine.state.epoch_loss_sum if step > 1 else 0.0
        engine.state.epoch_loss_sum = before + read_loss(engine.state.output).item()
        engine.state.metrics["epoch_loss"] = engine.state.epoch_loss_sum / step

    def finish(self, engine: Workflow) -> None:
        """Mark the run as complete."""
        self._write(self.session_end)

    def _write(self, *summaries: Any) -> None:
        # closed already: a federation may end a client in the middle of a round
        if self.writer is None or self.writer.file_writer is None:
            return
        for summary in summaries:
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()


def _read_scalars(engine: Trainer, output: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a step by tag: its losses, and the learning rate."""
    optimizer, _, loss = read_parts(engine)
    adversarial = (AdversarialKeys.GENERATOR_LOSS, AdversarialKeys.DISCRIMINATOR_LOSS)
    return {
        "train/loss": read_loss(output),
        **{f"train/{name}": output[name] for name in adversarial if name in output},
        "train/learning_rate": optimizer.param_groups[0]["lr"],
        **{f"loss_parts/{name}": part for name, part in getattr(loss, "parts", {}).items()},
    }


class LossProgress(ProgressBar):
    """ignite's progress bar with the loss of the last step beside it."""

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Register with a trainer."""
        super().attach(engine, output_transform=lambda output: {"loss": read_loss(output).item()})


def track_loss(handlers: Sequence[Any]) -> list[Any]:
    """Let the MLflow handler that ``monai.bundle`` adds to a trainer's (``--tracking mlflow``) find the loss.

    It looks for one in each item of a decollated batch; these trainers don't decollate, and return one dictionary.

    Args:
        handlers: of a trainer, with or without one for MLflow.

    Returns:
        The same handlers.
    """
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            handler.output_transform = read_loss
    return list(handlers)
