"""What changes over a training beside the weights: the learning rate, and the weights' moving average."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.optimizers.lr_scheduler import WarmupCosineSchedule


class WarmupCosine(WarmupCosineSchedule):
    """MONAI's linear warm-up and cosine decay, of which a checkpoint keeps the position alone.

    A training that is resumed with more epochs or another rate then follows the new schedule from where it stands; the
    full state would bring back the old length, past whose end the cosine rises again.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after ``state_dict["last_epoch"]`` steps; the optimizer, which has a rate too, is loaded before."""
        self.last_epoch = state_dict["last_epoch"]
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)


class WeightAverage(EMAHandler):
    """ignite's moving average of the weights, from those that a training starts with.

    ignite's own starts from the weights at its making; a federated client is handed the server's after that.
    """

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Register with a trainer; a checkpoint that is loaded at the start has to be attached later."""
        super().attach(engine, *args, **kwargs)
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Take over the weights of a training that begins, not of one that goes on."""
        if engine.state.iteration == 0:
            self.ema_model.load_state_dict(self.model.state_dict())
