"""The learning rate over a training."""

from __future__ import annotations

from typing import Any

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
