"""The ball in a volume: its radius and centre, fitted to the support by maximum likelihood."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

# A surface voxel is taken for foreground with probability sigmoid((r - d) / tau), d its distance from the centre. The
# fit anneals tau (voxels): wide at first, on every second voxel of each axis, so that a poor start still feels the
# surface; at the last value the bias of the radius, 3.3 tau^2 / r from the surface's curvature, is below 0.01 voxels.
COARSE_WIDTHS, FINE_WIDTHS = (2.0, 1.0, 0.5), (0.3, 0.2)


def _axes_of(shape: tuple[int, ...], step: int, device: torch.device) -> list[torch.Tensor]:
    """Centres of every ``step``-th voxel along each axis."""
    return [torch.arange(0, size, step, device=device) + 0.5 for size in shape]


@lru_cache
def _grid_of(shape: tuple[int, ...], step: int, device: torch.device) -> torch.Tensor:
    """Centres of every ``step``-th voxel along each axis, shape (3, voxels)."""
    return torch.stack(torch.meshgrid(_axes_of(shape, step, device), indexing="ij")).flatten(1)


def distances(ball: torch.Tensor, shape: tuple[int, ...], step: int = 1) -> torch.Tensor:
    """Distances of the voxels of a volume from the centre of ``ball``, shape (4,) as r, cx, cy, cz: shape (voxels,)."""
    axes = _axes_of(shape, step, ball.device)
    x2, y2, z2 = ((axis - centre) ** 2 for axis, centre in zip(axes, ball[1:].float(), strict=True))
    squares = x2[:, None, None] + y2[:, None] + z2
    return squares.flatten().sqrt_().clamp_min_(1e-3)


def _fisher_step(ball: torch.Tensor, support: torch.Tensor, step: int, tau: float) -> torch.Tensor:
    """One step of Fisher scoring, Newton's method with the expected Hessian: the change of ``ball``, (4,)."""
    shape = tuple(support.shape)
    distance = distances(ball, shape, step)
    p = torch.sigmoid((ball[0].float() - distance) / tau)
    residual = support[::step, ::step, ::step].flatten() - p
    # all the others, far from the surface and on its right side, add next to nothing to the sums
    telling = (residual.abs() > 1e-5).nonzero().squeeze(1)
    distance, p, residual = distance[telling], p[telling], residual[telling]
    offsets = _grid_of(shape, step, support.device)[:, telling] - ball[1:, None].float()
    # score and Fisher information: sums over the voxels of d logit / d(r, c) = (1, (x - c) / d) / tau
    jacobian = torch.cat([torch.ones_like(distance)[None], offsets / distance])
    score = jacobian @ residual / tau
    information = (jacobian * (p * (1 - p))) @ jacobian.T / tau**2
    ridge = 1e-3 * torch.eye(4, dtype=torch.float64, device=ball.device)
    change = torch.linalg.solve(information.double() + ridge, score.double())
    # a support that is no ball may ask for leaps; a real one is a fraction of a voxel away
    return change.clamp(-2.0, 2.0)


def fit_ball(support: torch.Tensor) -> torch.Tensor:
    """Fit a ball to a support by maximum likelihood.

    The model: each voxel is foreground with probability sigmoid((r - d) / tau), independently; tau is a small constant.
    Fisher scoring starts from the support's moments: the radius of the ball of the same volume, the centroid.

    Args:
        support: 1 in it and 0 outside, shape (D, H, W), float32.

    Returns:
        r, cx, cy, cz in voxels, shape (4,), float64; NaN for an empty support.
    """
    shape = tuple(support.shape)
    count = support.sum().double()  # exact up to 2^24 voxels
    if count == 0:
        return torch.full((4,), torch.nan, dtype=torch.float64, device=support.device)
    centroid = [
        (support.sum(dim=others) * axis).sum() / count
        for axis, others in zip(_axes_of(shape, 1, support.device), ((1, 2), (0, 2), (0, 1)), strict=True)
    ]
    ball = torch.stack([(count * 3 / (4 * math.pi)) ** (1 / 3), *centroid])
    for step, widths in ((2, COARSE_WIDTHS), (1, FINE_WIDTHS)):
        for tau in widths:
            ball = ball + _fisher_step(ball, support, step, tau)
    return ball
