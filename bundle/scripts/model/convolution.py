"""Convolutions on grids of a few voxels, such as both networks have at their lowest level."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

SAME_SIZE = (((1, 1, 1), (0, 0, 0)), ((3, 3, 3), (1, 1, 1)))  # kernels, and the padding that keeps a grid's size


@lru_cache
def _find_taps(grid: tuple[int, ...]) -> torch.Tensor:
    """Find which of a kernel's 27 taps joins each output of a grid to each input: ones among zeros, (27, pairs)."""
    with torch.inference_mode(False):  # a later backward pass has to keep them
        places = torch.cartesian_prod(*(torch.arange(size) for size in grid))
        taps = ((places[None] - places[:, None] + 1) * torch.tensor([9, 3, 1])).sum(dim=-1).flatten()
        return F.one_hot(taps, 27).T.float()


def _swap_axes(x: torch.Tensor) -> torch.Tensor:
    """Swap the middle axes of (A, B, C, D). Rows of D are copied in words of 16 bytes, which halves the time in bf16.

    PyTorch copies swapped axes one number at a time, and its widest number is complex128.
    """
    x = x.contiguous()
    wide = x.shape[-1] * x.element_size() % 16 == 0
    return (x.view(torch.complex128) if wide else x).transpose(1, 2).contiguous().view(x.dtype)


class _SpreadKernel(torch.autograd.Function):
    """Spreads a kernel (outputs, inputs, 3, 3, 3) over the matrix of a grid, (outputs * voxels, inputs * voxels).

    A view as another type has no gradient in autograd, so the backward pass is written here. It has no second one.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, grid: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        ctx.grid = grid
        outputs, inputs, count = *weight.shape[:2], math.prod(grid)
        kernels = weight.reshape(outputs * inputs, 27).to(dtype)  # before it is spread, for it is smaller
        picked = kernels @ _find_taps(grid).to(dtype)
        return _swap_axes(picked.view(outputs, inputs, count, count)).view(outputs * count, inputs * count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        count = math.prod(ctx.grid)
        outputs, inputs = (length // count for length in grad.shape)
        picked = _swap_axes(grad.reshape(outputs, count, inputs, count)).view(outputs * inputs, count * count)
        kernels = picked @ _find_taps(ctx.grid).T.to(grad.dtype)
        return kernels.view(outputs, inputs, 3, 3, 3), None, None


class SmallConv3d(nn.Conv3d):
    """A convolution with a kernel of 1 or 3^3 that works on grids of at most 2^3 as a product of matrices.

    With 3^3 each output sees each input there, through 8 of the kernel's 27 taps; the usual way computes with all 27.
    On a CPU this takes a third of the time, and it avoids a fault: PyTorch 2.13's bf16 backward of ``Conv3d`` on 2^3
    now and then returns gradients that are not finite. With a kernel of 1 it is a linear layer over the channels of
    each voxel, in half the time. Larger grids, other devices and exporters take the usual way.
    """

    _kept: tuple[object, torch.Tensor] | None = None  # the matrix of the last call without gradients, and of what it is

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, d, h, w)."""
        grid = tuple(x.shape[2:])
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if exporting or x.device.type != "cpu" or max(grid) > 2:
            return super().forward(x)
        if self.kernel_size == (1, 1, 1):
            y = F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias)
            return y.movedim(-1, 1).contiguous()  # group normalization on such a grid is slow with the channels last
        bias = None if self.bias is None else self.bias.to(x.dtype).repeat_interleave(math.prod(grid))
        return F.linear(x.flatten(1), self._make_matrix(grid, x.dtype), bias).view(len(x), self.out_channels, *grid)

    def _make_matrix(self, grid: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Spread the kernel over a matrix of (outputs, inputs) on a grid."""
        learns = torch.is_grad_enabled()
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        # a sampler calls the same weights again and again, and making the matrix takes longer than multiplying with it
        made_of = (grid, dtype, self.weight.data_ptr(), self.weight._version)
        if not learns and self._kept is not None and self._kept[0] == made_of:
            return self._kept[1]
        matrix = _SpreadKernel.apply(self.weight, grid, dtype)
        self._kept = None if learns else (made_of, matrix)
        return matrix


def speed_up(network: nn.Module) -> nn.Module:
    """Let a network's convolutions work as ``SmallConv3d`` does where they can; its weights stay its own.

    Args:
        network: MONAI's ``DiffusionModelUNet`` or ``AutoencoderKL``, or another.

    Returns:
        The network.
    """
    for module in network.modules():
        # the convolutions of MONAI's residual blocks, and of their shortcuts
        if type(module) is nn.Conv3d and (module.kernel_size, module.padding) in SAME_SIZE:
            plain = module.stride == module.dilation == (1, 1, 1) and module.padding_mode == "zeros"
            if plain and module.groups == 1:
                module.__class__ = SmallConv3d  # the same parameters, another forward
    return network
