"""What a training leaves on disk to carry on from, so that a resumed one is the one that was never stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver
from monai.engines import AdversarialTrainer, SupervisedEvaluator, Workflow
from monai.handlers import CheckpointLoader

from .stability import Trainer

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves everything that a resume needs after each epoch, and the best weights; resumes from the newest of them.

    The files are ignite's, written whole or not at all: ``checkpoint_epoch=N.pt``, and
    ``best_model_<metric>=<value>.pt`` after each validation that is the best so far. To ``state`` come the trainer's
    own (epoch, iteration), the gradient scalers' where it has some, and the best score.

    Args:
        ckpt_dir: the folder to write to; it is made.
        state: objects with a ``state_dict``, by name: the model, its optimizer, the schedule, ...
        evaluator: whose metric picks the best weights.
        best: the network whose weights are kept as the best.
        metric: name of the metric.
        lower_is_better: whether the lowest value is the best.
        resume: whether to carry on from the newest readable checkpoint in ``ckpt_dir``, if there is one.
        n_saved: how many of the newest checkpoints to keep.
    """

    def __init__(
        self,
        ckpt_dir: str,
        state: Mapping[str, Any],
        evaluator: SupervisedEvaluator,
        best: torch.nn.Module,
        metric: str,
        lower_is_better: bool = False,
        resume: bool = False,
        n_saved: int = 3,
    ) -> None:
        self.ckpt_dir = ckpt_dir
        self.state = dict(state)
        self.evaluator = evaluator
        self.resume = resume
        self.n_saved = n_saved
        self.saver: Checkpoint | None = None
        sign = -1 if lower_is_better else 1
        self.best = Checkpoint(
            {"model": best},
            self._folder(),
            filename_prefix="best",
            score_name=f"negative_{metric}" if lower_is_better else metric,
            score_function=lambda engine: sign * engine.state.metrics[metric],
        )

    def _folder(self) -> DiskSaver:
        return DiskSaver(self.ckpt_dir, create_dir=True, require_empty=False)

    def attach(self, engine: Trainer) -> None:
        """Register with a trainer, and with the evaluator."""
        self.evaluator.add_event_handler(Events.COMPLETED, self.best)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def start(self, engine: Trainer) -> None:
        """Carry on from the newest checkpoint, if that is asked for."""
        if self.saver is not None:  # a further round of a federation
            return
        # not in attach: MONAI attaches handlers before the trainer has its scaler
        state = {**self.state, "trainer": engine, "best": self.best, **_scalers(engine)}
        newest = newest_checkpoint(self.ckpt_dir) if self.resume else None
        if newest is not None:
            CheckpointLoader(newest, state, map_location=engine.state.device)(engine)
        self.saver = Checkpoint(
            state,
            self._folder(),
            filename_pattern="checkpoint_epoch={global_step}.pt",
            global_step_transform=lambda trainer, _: trainer.state.epoch,
            n_saved=self.n_saved,
        )

    def save(self, engine: Trainer) -> None:
        """Write the epoch's checkpoint."""
        assert self.saver is not None
        self.saver(engine)


def _scalers(engine: Trainer) -> dict[str, torch.amp.GradScaler]:
    """Name the gradient scalers of a trainer that has some, as one in float16 does."""
    if isinstance(engine, AdversarialTrainer):
        engine.state_dict_user_keys.clear()  # it would keep networks and optimizers a second time, as they are
        scalers = {"scaler": engine.state.g_scaler, "discriminator_scaler": engine.state.d_scaler}
    else:
        scalers = {"scaler": engine.scaler}
    return {name: scaler for name, scaler in scalers.items() if scaler is not None}


class EpochSeed:
    """Seeds torch's random numbers at the start of each epoch by seed and epoch.

    The order of the data, the draws of latents, noise and timesteps of an epoch then don't depend on the epochs before
    it, and a resumed training continues as an uninterrupted one would have.

    Args:
        seed: a non-negative integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Seed the epoch that starts."""
        torch.manual_seed(self.seed * 1_000_003 + engine.state.epoch)


def newest_checkpoint(folder: str | os.PathLike) -> str | None:
    """Find the newest checkpoint of a training that can still be read.

    Args:
        folder: where the training wrote ``checkpoint_epoch=N.pt``.

    Returns:
        Path of the readable checkpoint that was written last, or ``None`` if there is none.
    """

    def written(path: Path) -> tuple[float, int]:
        # By time first, for a folder may hold later epochs of an earlier training; by epoch where a copy lost the time.
        epoch = path.stem.rpartition("=")[2]
        return path.stat().st_mtime, int(epoch) if epoch.isdigit() else -1

    for path in sorted(Path(folder).glob("checkpoint_epoch=*.pt"), key=written, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch reports a damaged file in half a dozen ways
            logger.warning("%s can't be read (%s): trying the one before", path, error)
        else:
            logger.info("resuming from %s", path)
            return str(path)
    logger.info("no checkpoint in %s: starting from the beginning", folder)
    return None
