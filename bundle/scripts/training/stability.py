"""Non-finite gradients and losses: gradients are clipped or their step is dropped, a loss ends its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from ignite.engine import Events
from monai.engines import AdversarialTrainer, SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from monai.utils.enums import AdversarialIterationEvents, AdversarialKeys

from ..checks import PlainError, SettingError, is_number
from ..distributed import average_over_processes
from .resume import list_checkpoints

Trainer: TypeAlias = SupervisedTrainer | AdversarialTrainer

# What handlers count in ``engine.state``, to be kept in a checkpoint with the trainer's own counters.
COUNTERS = ("skipped_steps", "epoch_loss_sum")


def read_loss(output: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss in a trainer's output: an ``AdversarialTrainer`` calls its own the reconstruction loss."""
    adversarial = AdversarialKeys.RECONSTRUCTION_LOSS
    return output[adversarial] if adversarial in output else output[CommonKeys.LOSS]


def read_losses(output: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return every loss in a trainer's output: ``read_loss``'s, and those of generator and discriminator."""
    others = (AdversarialKeys.GENERATOR_LOSS, AdversarialKeys.DISCRIMINATOR_LOSS)
    return [read_loss(output), *(output[key] for key in others if key in output)]


def read_parts(engine: Trainer) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler | None, Callable]:
    """Return a trainer's optimizer, gradient scaler and loss function: the generator's of an ``AdversarialTrainer``."""
    if isinstance(engine, AdversarialTrainer):
        return engine.state.g_optimizer, engine.state.g_scaler, engine.state.recon_loss_function
    return engine.optimizer, engine.scaler, engine.loss_function


class GradientClipper:
    """Clips the gradient's norm before each optimizer step, and skips a step whose gradient is not finite.

    A single non-finite gradient, which bf16 kernels return now and then, would turn every weight into NaN. The number
    of skipped steps is ``engine.state.skipped_steps``, the last norm ``engine.state.gradient_norm``. Of an
    ``AdversarialTrainer`` it takes the generator's.

    Args:
        max_norm: largest norm of the gradient over all parameters.
    """

    def __init__(self, max_norm: float) -> None:
        if not is_number(max_norm) or max_norm <= 0:
            raise SettingError(f"max_norm={max_norm!r}: must be a number above 0.")
        self.max_norm = max_norm

    def attach(self, engine: Trainer) -> None:
        """Register with a trainer."""
        engine.state.skipped_steps = 0
        engine.state_dict_user_keys.append("skipped_steps")
        engine.state.gradient_norm = 0.0
        adversarial = isinstance(engine, AdversarialTrainer)
        event = (
            AdversarialIterationEvents.GENERATOR_BACKWARD_COMPLETED
            if adversarial
            else IterationEvents.BACKWARD_COMPLETED
        )
        engine.add_event_handler(event, self)

    def __call__(self, engine: Trainer) -> None:
        """Clip, or drop, the gradients of the trainer's optimizer."""
        optimizer, scaler, _ = read_parts(engine)
        if scaler is not None:
            scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        engine.state.gradient_norm = float(norm)
        if not torch.isfinite(norm):
            engine.state.skipped_steps += 1
            if scaler is None:  # a gradient scaler skips the step itself, and lowers its scale
                optimizer.zero_grad(set_to_none=True)


class DivergenceError(PlainError, FloatingPointError):
    """A loss that is not finite."""


class StopOnNaN:
    """Ends a training with a loss that is not finite, by an error; its checkpoints stay as they are.

    Of several processes each first takes the mean of their losses, and of the loss's parts, for its own: so all end
    together, and one draws the curves of all.

    ignite's ``TerminateOnNan`` would end the run as if it were complete, and what follows would save the weights as
    final.

    Args:
        ckpt_dir: where the training's checkpoints are, for the message.
    """

    def __init__(self, ckpt_dir: str) -> None:
        self.ckpt_dir = ckpt_dir

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        """Raise ``DivergenceError`` if the step's loss is not finite."""
        losses = [loss.detach() for loss in read_losses(engine.state.output)]
        *_, loss_function = read_parts(engine)
        average_over_processes([*losses, *getattr(loss_function, "parts", {}).values()])
        loss = next((value for value in map(float, losses) if not math.isfinite(value)), None)
        if loss is None:
            return
        checkpoints = list_checkpoints(Path(self.ckpt_dir))
        last = f"The last good checkpoint is {checkpoints[0]}" if checkpoints else "There is no checkpoint yet"
        raise DivergenceError(
            f"the loss is {loss} in epoch {engine.state.epoch}, step {engine.state.iteration}: training stopped. "
            f"{last}; carry on with resume=true and a lower lr, or precision float32."
        )
