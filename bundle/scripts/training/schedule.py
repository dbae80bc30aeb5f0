"""What changes over a training beside the weights: the learning rate, and the weights' moving average."""

from __future__ import annotations

from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines import Workflow
from monai.handlers import LrScheduleHandler
from monai.optimizers.lr_scheduler import WarmupCosineSchedule
from torch import nn
from torch.optim import Optimizer

from ..checks import SettingError, is_number


class WarmupCosine(WarmupCosineSchedule):
    """MONAI's linear warm-up and cosine decay to 0, over as many steps as ``LearningRate`` tells it.

    A checkpoint keeps the position alone. A training that is resumed with more epochs or another rate then follows the
    new schedule from where it stands; the full state would bring back the old length.

    Args:
        optimizer: whose rate to set.
        warmup: share of the steps that the rate rises over, from a tenth of it.
    """

    def __init__(self, optimizer: Optimizer, warmup: float) -> None:
        if not is_number(warmup) or not 0 <= warmup <= 1:
            raise SettingError(f"warmup={warmup!r}: must be a share of the steps, from 0 to 1.")
        self.warmup = warmup
        super().__init__(optimizer, warmup_steps=1, t_total=1, warmup_multiplier=0.1)

    def set_length(self, steps: int) -> None:
        """Set the number of steps of the whole training."""
        self.t_total = steps
        self.warmup_steps = max(int(self.warmup * steps), 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after ``state_dict["last_epoch"]`` steps; the optimizer, which has a rate too, is loaded before."""
        self.last_epoch = state_dict["last_epoch"]
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)


class LearningRate(LrScheduleHandler):
    """MONAI's ``LrScheduleHandler``, after each step, for a schedule as long as the training.

    It lasts over all the epochs that the trainer is made for; or, in a federation that goes on beyond them, over those
    that it runs: a schedule that was at its end would start over.

    Args:
        lr_scheduler: the schedule.
    """

    def __init__(self, lr_scheduler: WarmupCosine) -> None:
        super().__init__(lr_scheduler, print_lr=False, epoch_level=False)  # type: ignore[arg-type]
        self.schedule = lr_scheduler
        self.steps = 0

    def attach(self, engine: Workflow) -> None:  # type: ignore[override]
        """Register with a trainer."""
        super().attach(engine)
        self.measure(engine)
        engine.add_event_handler(Events.STARTED, self.measure)

    def measure(self, engine: Workflow) -> None:
        """Take over the length of the training, unless it was longer before."""
        self.steps = max(self.steps, engine.state.max_epochs * engine.state.epoch_length)
        self.schedule.set_length(self.steps)


class WeightAverage(EMAHandler):
    """ignite's moving average of the weights, over a fixed share of the training so far.

    After t steps the newest weights count 1 - (1 - 1/t)^(gamma + 1): a power-law average (Karras et al. 2024,
    "Analyzing and Improving the Training Dynamics of Diffusion Models", equation 2). It forgets the beginning whatever
    the number of steps, where a constant momentum would keep most of the initial noise in a short training.

    Args:
        model: whose weights to average.
        span: standard deviation of the average's profile over the length of the training, about the share of the
            training that it covers.
    """

    def __init__(self, model: nn.Module, span: float = 0.1) -> None:
        super().__init__(model)
        # equation 126 of the paper, solved for gamma
        variance = span**-2
        self.gamma = float(np.roots([1, 7, 16 - variance, 12 - variance]).real.max())

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Register with a trainer; a checkpoint that is loaded at the start has to be attached later."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.weigh)
        super().attach(engine, *args, **kwargs)

    def start(self, engine: Engine) -> None:
        """Take over the weights of a training that begins: a federated client's are the server's, not its own."""
        if engine.state.iteration == 0:
            self.ema_model.load_state_dict(self.model.state_dict())

    def weigh(self, engine: Engine) -> None:
        """Set how much the weights after this step count."""
        engine.state.ema_momentum = 1 - (1 - 1 / engine.state.iteration) ** (self.gamma + 1)  # type: ignore[attr-defined]
