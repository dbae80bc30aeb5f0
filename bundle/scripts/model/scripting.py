"""How a network that ``torch.jit.script`` can't read becomes TorchScript all the same."""

from __future__ import annotations

import torch
from torch import nn


class TracedWhenScripted(nn.Module):
    """Lets ``torch.jit.script``, which can't read MONAI's networks, take a trace of a module instead.

    So MONAI's ``ckpt_export`` works with and without ``use_trace``. The trace takes any number of volumes of any size
    that the networks take.
    """

    def example_input(self) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return an input to trace with, or noise and condition by name; subclasses have to."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what is scripted in place of this module (a protocol of ``torch.jit.script``)."""
        example = self.example_input()
        if isinstance(example, dict):
            return _TracedConditional(torch.jit.trace(self, example_kwarg_inputs=example, check_trace=False))
        return _Traced(torch.jit.trace(self, example, check_trace=False))


class _Traced(nn.Module):
    """A traced module in one that can be scripted: the result of ``__prepare_scriptable__`` is scripted in its turn."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


class _TracedConditional(_Traced):
    """The same of a module that takes a condition too."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.module(noise=x, condition=condition)
