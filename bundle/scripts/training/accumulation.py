"""A batch that memory can't hold at once: its gradients, added up over several passes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch.nn.parallel import DistributedDataParallel


class GradientAccumulation:
    """An optimizer step in several passes: an ``iteration_update`` for MONAI's ``SupervisedTrainer``.

    To the trainer's own ``accumulation_steps`` each pass is an iteration, and so it is to whatever counts these: the
    schedule, the average of the weights, the curves, a checkpoint within an epoch. Here an iteration stays an optimizer
    step, and all of them are as without accumulation.

    MONAI's events of a forward pass and of a loss are not fired, and the output has no prediction: what is attached to
    them, or computes a metric of training, needs one pass a step.

    A batch is prepared as a whole, then passes in parts through network, loss and backward; gradients and loss are the
    means over the parts, which up to rounding are those of the batch. So are the random numbers: those of the
    preparation always; those that the network draws (an autoencoder's latents) on a CPU where a part has a multiple of
    16 of them, as torch draws 16 at a time; on a GPU they are others.

    Several processes average their gradients once, in the last pass.

    Args:
        steps: how many passes; it divides the batch.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, engine: SupervisedTrainer, batchdata: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take a step; returns the batch's input (B, C, D, H, W), what it is compared with, and the loss."""
        prepared = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        inputs, targets, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        mean = torch.zeros((), device=engine.state.device)
        terms: dict[str, torch.Tensor] = {}  # the loss's own, which it keeps of its last call alone
        for i in range(self.steps):
            take = partial(_take, i=i, count=self.steps)
            shared = isinstance(engine.network, DistributedDataParallel) and i < self.steps - 1
            with engine.network.no_sync() if shared else nullcontext():  # type: ignore[operator]
                with torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else nullcontext():
                    arguments = {name: take(value) for name, value in kwargs.items()}
                    loss = engine.loss_function(
                        engine.inferer(take(inputs), engine.network, *map(take, args), **arguments), take(targets)
                    )
                    loss = loss.mean() / self.steps
                (loss if engine.scaler is None else engine.scaler.scale(loss)).backward()
            mean += loss.detach()
            for name, term in getattr(engine.loss_function, "parts", {}).items():
                terms[name] = terms.get(name, 0) + term / self.steps
        getattr(engine.loss_function, "parts", {}).update(terms)
        engine.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets, CommonKeys.LOSS: mean}
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if engine.scaler is None:
            engine.optimizer.step()
        else:
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def _take(value: Any, i: int, count: int) -> Any:
    """Return part ``i`` of ``count`` of a tensor (B, ...); what is no tensor is the same for each."""
    return value.chunk(count)[i] if isinstance(value, torch.Tensor) else value
