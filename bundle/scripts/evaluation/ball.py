"""The ball in a volume: its radius and centre, fitted to the support by maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# A surface voxel is taken for foreground with probability sigmoid((r - d) / tau), d its distance from the centre. The
# fit anneals tau (voxels): wide at first, on every second voxel of each axis, so that a poor start still feels the
# surface; at the last value the bias of the radius, 3.3 tau^2 / r from the surface's curvature, is below 0.01 voxels.
COARSE_WIDTHS, FINE_WIDTHS = (2.0, 1.0, 0.5), (0.3, 0.2)


def grid_of(shape: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    """Centres of the voxels along each axis, shaped to broadcast over (B, D, H, W)."""
    axes = [torch.arange(size, device=device) + 0.5 for size in shape]
    return [axis.view([-1 if i == j else 1 for j in range(4)]) for i, axis in enumerate(axes, start=1)]


def distances(ball: torch.Tensor, grid: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Offsets from the centres along each axis, and distances (B, D, H, W); ``ball``: (B, 4) as r, cx, cy, cz."""
    offsets = [axis - ball[:, k].view(-1, 1, 1, 1).float() for k, axis in enumerate(grid, start=1)]
    return offsets, (offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2).sqrt_().clamp_min_(1e-3)


def _fisher_step(ball: torch.Tensor, support: torch.Tensor, grid: list[torch.Tensor], tau: float) -> torch.Tensor:
    """One step of Fisher scoring, Newton's method with the expected Hessian: the change of ``ball``, (B, 4)."""
    offsets, distance = distances(ball, grid)
    p = torch.sigmoid((ball[:, 0].view(-1, 1, 1, 1).float() - distance) / tau)
    # score and Fisher information: sums over the voxels of d logit / d(r, c) = (1, (x - c) / d) / tau
    jacobian = torch.stack([torch.ones_like(distance), *(offset / distance for offset in offsets)], dim=1).flatten(2)
    score = jacobian @ (support.float() - p).flatten(1).unsqueeze(-1) / tau
    information = (jacobian * (p * (1 - p)).flatten(1).unsqueeze(1)) @ jacobian.mT / tau**2
    ridge = 1e-3 * torch.eye(4, dtype=torch.float64, device=ball.device)
    step = torch.linalg.solve(information.double() + ridge, score.double()).squeeze(-1)
    # a support that is no ball may ask for leaps; a real one is a fraction of a voxel away
    return step.clamp(-2.0, 2.0)


def fit_ball(support: torch.Tensor) -> torch.Tensor:
    """Fit a ball to each support by maximum likelihood.

    The model: each voxel is foreground with probability sigmoid((r - d) / tau), independently; tau is a small constant.
    Fisher scoring starts from the support's moments: the radius of the ball of the same volume, the centroid.

    Args:
        support: boolean, shape (B, D, H, W).

    Returns:
        r, cx, cy, cz in voxels, shape (B, 4), float64; NaN for an empty support.
    """
    grid = grid_of(support.shape[1:], support.device)
    count = support.sum(dim=(1, 2, 3)).double()
    centroid = []
    for k, axis in enumerate(grid, start=1):
        profile = support.sum(dim=[other for other in (1, 2, 3) if other != k])
        centroid.append((profile * axis.flatten()).sum(dim=1) / count)
    ball = torch.stack([(count * 3 / (4 * math.pi)) ** (1 / 3), *centroid], dim=1)
    coarse = [axis[:, ::2, ::2, ::2] for axis in grid]
    for tau in COARSE_WIDTHS:
        ball = ball + _fisher_step(ball, support[:, ::2, ::2, ::2], coarse, tau)
    for tau in FINE_WIDTHS:
        ball = ball + _fisher_step(ball, support, grid, tau)
    return torch.where(count[:, None] > 0, ball, torch.nan)
