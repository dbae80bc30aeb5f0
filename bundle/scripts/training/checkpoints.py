"""What a training leaves on disk to carry on from, so that a resumed one is the one that was never stopped."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.engines import AdversarialTrainer, SupervisedEvaluator, Workflow
from monai.handlers import CheckpointLoader
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from ..command_line import Interruption
from ..weights import write_state
from .resume import EventFiles, RandomState, list_checkpoints
from .stability import COUNTERS, Trainer

logger = logging.getLogger(__name__)


class CheckpointFiles(BaseSaveHandler):
    """A folder of files that appear whole or not at all, for ignite's ``Checkpoint``.

    ignite's own ``DiskSaver`` does not flush what it renames, and can't remove what a killed run removed before. Of
    several processes the first alone writes.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    @idist.one_rank_only()
    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Write a file."""
        write_state(checkpoint, self.folder / filename)

    @idist.one_rank_only()
    def remove(self, filename: str) -> None:
        """Remove a file, if it is still there."""
        (self.folder / filename).unlink(missing_ok=True)


class Checkpoints:
    """Saves everything that a resume needs after each epoch, and the best weights; carries on from a checkpoint.

    Files: ``checkpoint_epoch=N.pt``, and ``best_model_<metric>=<value>.pt`` after each validation that is the best so
    far (``best_model_negative_<metric>=<value>.pt`` where the lowest is). To ``state`` come the trainer's own (epoch,
    iteration), the gradient scalers' where it has some, and the best score. A training that is interrupted (Ctrl-C,
    SIGTERM) finishes its step and leaves ``checkpoint_epoch=N_iteration=I.pt``, I steps into the next epoch.

    Args:
        ckpt_dir: the folder to write to; it is made.
        state: objects with a ``state_dict``, by name: the model, its optimizer, the schedule, ...
        evaluator: whose metric picks the best weights.
        best: the network whose weights are kept as the best.
        metric: name of the metric.
        writer: whose curves go back to where they were at the checkpoint; those of an earlier training are set aside;
            ``None`` for a process that draws none.
        lower_is_better: whether the lowest value is the best.
        resume_from: the checkpoint to carry on from, if there is one.
        keep: how many of the newest checkpoints to keep; ``None`` keeps all.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        state: Mapping[str, Any],
        evaluator: SupervisedEvaluator,
        best: torch.nn.Module,
        metric: str,
        writer: SummaryWriter | None,
        lower_is_better: bool = False,
        resume_from: str | os.PathLike | None = None,
        keep: int | None = None,
    ) -> None:
        self.files = CheckpointFiles(ckpt_dir)
        self.state = dict(state)
        self.evaluator = evaluator
        self.resume_from = resume_from
        self.keep = keep
        self.interruption = Interruption()
        self.stopping = 0  # the signal that all processes have heard of
        self.random = RandomState()
        self.events = EventFiles(writer)
        sign = -1 if lower_is_better else 1
        self.best = Checkpoint(
            {"model": best},
            self.files,
            filename_prefix="best",
            score_name=f"negative_{metric}" if lower_is_better else metric,
            score_function=lambda engine: sign * engine.state.metrics[metric],
        )
        self.saver: Checkpoint | None = None

    def attach(self, engine: Trainer) -> None:
        """Register with a trainer, and with the evaluator."""
        self.evaluator.add_event_handler(Events.COMPLETED, self.best)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.skip)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.stop_if_interrupted)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Trainer) -> None:
        """Carry on from a checkpoint, if there is one to carry on from."""
        self.interruption.await_one()
        if self.saver is not None:  # a further round of a federation
            return
        # not in attach: MONAI attaches handlers before the trainer has its scaler
        state = {**self.state, "trainer": engine, "best": self.best, "random": self.random, "events": self.events}
        state |= _scalers(engine)
        self.random.device = torch.device(engine.state.device)
        self.saver = Checkpoint(
            state,
            self.files,
            filename_pattern="checkpoint_epoch={global_step}.pt",
            global_step_transform=lambda trainer, _: trainer.state.epoch,
            n_saved=None,
        )
        if self.resume_from is None:
            self.events.load_state_dict({})
        else:
            for optimizer in [item for item in self.state.values() if isinstance(item, Optimizer)]:
                optimizer.register_load_state_dict_pre_hook(_keep_options)
            # one of another precision has no gradient scaler
            there = torch.load(self.resume_from, map_location="cpu", weights_only=True, mmap=True)  # names alone
            known = {name: item for name, item in state.items() if name in there or "scaler" not in name}
            CheckpointLoader(str(self.resume_from), known, map_location=engine.state.device)(engine)
            if engine.state.epoch >= engine.state.max_epochs:
                logger.info("the training in %s is complete: %d epochs", self.files.folder, engine.state.epoch)
            else:
                logger.info("carrying on from %s", self.resume_from)
        self._prune()  # what a kill between a save and its end left

    def finish(self, engine: Trainer) -> None:
        """End at once by a signal from now on, and by one that came since the last save."""
        self.interruption.stop_waiting()
        self._agree()
        self._stop(engine)

    def skip(self, engine: Trainer) -> None:
        """Go to where in its epoch an interrupted training was: behind the batches that it has seen."""
        if not self.random.loaded:
            return
        for _ in range(engine.state.iteration % engine.state.epoch_length):
            next(engine._dataloader_iter)  # type: ignore[arg-type]  # ignite itself starts the epoch's data anew
        self.random.restore()

    def save(self, engine: Trainer) -> None:
        """Write the epoch's checkpoint, which replaces what an interruption left."""
        assert self.saver is not None
        self.random.within_epoch = False
        self.saver(engine)
        self._prune()
        self._agree()
        self._stop(engine)

    def stop_if_interrupted(self, engine: Trainer) -> None:
        """Save where the training is and end the process, if it was asked to end."""
        self._agree()
        within = engine.state.iteration % engine.state.epoch_length
        if not self.stopping or within == 0:  # at the end of an epoch its checkpoint comes next
            return
        assert self.saver is not None
        self.random.within_epoch = True
        # without the list of saved files, which is about whole epochs
        state = {name: item.state_dict() for name, item in self.saver.to_save.items()}
        self.files(state, f"checkpoint_epoch={engine.state.epoch - 1}_iteration={within}.pt")
        self._stop(engine)

    def _agree(self) -> None:
        """Let a signal to one of several processes stop them all at the same step."""
        self.stopping = int(idist.all_reduce(self.interruption.signal or 0, "MAX"))

    @idist.one_rank_only()
    def _prune(self) -> None:
        """Remove the checkpoints that a newer one makes needless."""
        there = list_checkpoints(self.files.folder)
        whole = [path for path in there if "iteration" not in path.name]
        within = [path for path in there[1:] if path not in whole]
        for path in [*within, *whole[self.keep or len(whole) :]]:
            path.unlink()

    def _stop(self, engine: Trainer) -> None:
        if self.stopping:
            logger.info(
                "stopped in epoch %d, step %d; the same command carries on",
                engine.state.epoch,
                engine.state.iteration,
            )
            sys.exit(128 + self.stopping)


def _keep_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Let an optimizer that loads a state keep its own options: a resumed training follows the config of now."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return {**state, "param_groups": [{**here, "params": there["params"]} for there, here in pairs]}


def _scalers(engine: Trainer) -> dict[str, torch.amp.GradScaler]:
    """Name the gradient scalers of a trainer that has some, as one in float16 does."""
    if isinstance(engine, AdversarialTrainer):
        # it would keep networks and optimizers a second time, as they are
        engine.state_dict_user_keys[:] = [key for key in engine.state_dict_user_keys if key in COUNTERS]
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
