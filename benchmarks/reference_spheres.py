"""Reference: one sphere the textbook way, in float32 with PyTorch."""

from __future__ import annotations

import torch


def draw_sphere(size: int = 64) -> torch.Tensor:
    """Draw a volume, shape (1, size, size, size), of the law in the README."""
    r = torch.empty(()).uniform_(size / 4, size / 2)
    c = r + torch.rand(3) * (size - 2 * r)
    a = torch.rand(()) - 0.5
    b = torch.rand(()) + 0.5
    axis = torch.arange(size) + 0.5
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = torch.sqrt((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2)
    mask = (distance <= r).float()
    return ((a + b * torch.randn(size, size, size)) * mask)[None]
