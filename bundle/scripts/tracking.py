"""MONAI's experiment tracking (``--tracking mlflow``), fitted to the trainers of this bundle."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from monai.handlers import MLFlowHandler
from monai.utils import CommonKeys


def read_loss(handlers: Sequence[Any], key: str = CommonKeys.LOSS) -> list[Any]:
    """Let the MLflow handler that ``monai.bundle`` adds to a trainer's find the loss.

    It looks for one in each item of a decollated batch; these trainers don't decollate, and return one dictionary.

    Args:
        handlers: of a trainer, with or without one for MLflow.
        key: of the loss in the trainer's output.

    Returns:
        The same handlers.
    """
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            handler.output_transform = itemgetter(key)
    return list(handlers)
