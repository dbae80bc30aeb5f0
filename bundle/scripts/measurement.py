"""The sphere in a volume: its parameters fitted by maximum likelihood from the volume alone, and why it is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from scipy import ndimage

from .spheres import SphereLaw

PARAMETERS = ("r", "cx", "cy", "cz", "a", "b")

# What is known of each volume: its parameters, how well a ball fits it, and statistics of the values in the ball.
COLUMNS = (
    *PARAMETERS,
    "dice",
    "components",
    "voxels",
    "background",
    "normal_ks",
    "kurtosis",
    "autocorrelation_x",
    "autocorrelation_y",
    "autocorrelation_z",
    "rim_mean",
    "rim_std",
)

# A surface voxel is taken for foreground with probability sigmoid((r - d) / tau), d its distance from the centre. The
# fit anneals tau (voxels): wide at first, on every second voxel of each axis, so that a poor start still feels the
# surface; at the last value the bias of the radius, 3.3 tau^2 / r from the surface's curvature, is below 0.01 voxels.
COARSE_WIDTHS, FINE_WIDTHS = (2.0, 1.0, 0.5), (0.3, 0.2)

# Voxels further outside the fitted ball than this (voxels) are background, whatever the roughness of the surface.
BACKGROUND_MARGIN = 4.0


def _grid(shape: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    """Centres of the voxels along each axis, shaped to broadcast over (B, D, H, W)."""
    axes = [torch.arange(size, device=device) + 0.5 for size in shape]
    return [axis.view([-1 if i == j else 1 for j in range(4)]) for i, axis in enumerate(axes, start=1)]


def _distances(ball: torch.Tensor, grid: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Offsets from the centres along each axis, and distances (B, D, H, W); ``ball``: (B, 4) as r, cx, cy, cz."""
    offsets = [axis - ball[:, k].view(-1, 1, 1, 1).float() for k, axis in enumerate(grid, start=1)]
    return offsets, (offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2).sqrt_().clamp_min_(1e-3)


def _fisher_step(ball: torch.Tensor, support: torch.Tensor, grid: list[torch.Tensor], tau: float) -> torch.Tensor:
    """One step of Fisher scoring, Newton's method with the expected Hessian: the change of ``ball``, (B, 4)."""
    offsets, distance = _distances(ball, grid)
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
    grid = _grid(support.shape[1:], support.device)
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


def _count_components(support: torch.Tensor) -> torch.Tensor:
    """Number of connected components (faces touching) of each support (B, D, H, W)."""
    counts = [ndimage.label(item)[1] for item in support.cpu().numpy()]
    return torch.tensor(counts, dtype=torch.float64, device=support.device)


def _normal_ks(z: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """Largest distance of the distribution of ``z`` in each support from the standard normal one, (B,)."""
    edges = torch.linspace(-4, 4, 257, dtype=torch.float64, device=z.device)[1:]
    distances = []
    for values, inside in zip(z, support, strict=True):
        values = values[inside].clamp(-4, 4)
        share = torch.histc(values, bins=256, min=-4, max=4).double().cumsum(0) / len(values)
        distances.append((share - torch.special.ndtr(edges)).abs()[:-1].max())
    return torch.stack(distances)


def measure_values(volumes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measure what can be measured in any volume with a background of 0.

    Args:
        volumes: shape (B, 1, D, H, W).

    Returns:
        Tensors of shape (B,), float64: ``voxels``, the number that are not 0, and their ``mean`` and ``std`` (NaN where
        there is none).
    """
    values = volumes.flatten(1).double()
    support = values != 0
    count = support.sum(dim=1).double()
    mean = values.sum(dim=1) / count
    std = (((values - mean[:, None]) ** 2 * support).sum(dim=1) / count).sqrt()
    return {"voxels": count, "mean": mean, "std": std}


def measure_spheres(volumes: torch.Tensor, tolerance: float = 0.0) -> dict[str, torch.Tensor]:
    """Measure each volume: the maximum-likelihood sphere, how well it fits, and the texture within it.

    Args:
        volumes: shape (B, 1, D, H, W).
        tolerance: voxels of at most this absolute value count as background; 0 asks for exact zeros, as the law does.

    Returns:
        Tensors of shape (B,), float64, under the names of ``COLUMNS``:

        - ``r``, ``cx``, ``cy``, ``cz``: the fitted ball, voxels (see ``fit_ball``);
        - ``a``, ``b``: mean and standard deviation of the values in the support, the maximum of their likelihood;
        - ``dice``: overlap of the support with the fitted ball, 1 for a ball;
        - ``components``: connected components of the support; ``voxels``: their number of voxels;
        - ``background``: share of the voxels well outside the fitted ball (4 voxels or more) that are not 0;
        - ``normal_ks``: Kolmogorov-Smirnov distance of the standardised values in the support from N(0, 1), at the
          edges of 256 bins;
        - ``kurtosis``: excess kurtosis of the values in the support; 0 for a normal distribution;
        - ``autocorrelation_x``, ``_y``, ``_z``: of neighbours along each axis, both in the support;
        - ``rim_mean``: mean of the outer half (by volume) of the ball less that of the inner, in units of ``b``;
        - ``rim_std``: standard deviation of the outer half over that of the inner, less 1.

        An empty volume has NaN for what it has not, and 0 ``dice``, ``components`` and ``voxels``; a volume with voxels
        that are NaN or infinite has NaN for ``a``, ``b`` and its texture.
    """
    values = volumes[:, 0].float()
    support = values.abs() > tolerance if tolerance > 0 else values != 0
    spatial = (1, 2, 3)
    count = support.sum(dim=spatial).double()
    ball = fit_ball(support)
    _, distance = _distances(torch.nan_to_num(ball), _grid(support.shape[1:], support.device))
    r = torch.nan_to_num(ball[:, 0]).float().view(-1, 1, 1, 1)
    fitted = distance <= r
    overlap = (fitted & support).sum(dim=spatial).double()
    dice = torch.where(count > 0, 2 * overlap / (fitted.sum(dim=spatial) + count).clamp_min(1), 0.0)
    outside = distance > r + BACKGROUND_MARGIN
    background = (outside & support).sum(dim=spatial).double() / outside.sum(dim=spatial)

    def average(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return (x * where).sum(dim=spatial).double() / where.sum(dim=spatial)

    a = average(values, support)
    a = torch.where(a.isfinite(), a, torch.nan)
    b = average((values - a.float().view(-1, 1, 1, 1)) ** 2, support).sqrt()
    z = (values - a.float().view(-1, 1, 1, 1)) / b.float().view(-1, 1, 1, 1) * support
    # a constant ball has no texture (0 / 0, and x / 0 outside it); one that is not finite stays NaN
    z = torch.where(a.isfinite().view(-1, 1, 1, 1), torch.nan_to_num(z, posinf=0.0, neginf=0.0), torch.nan)
    z2 = z * z
    autocorrelation = []
    for axis, size in enumerate(support.shape[1:], start=1):
        both = support.narrow(axis, 0, size - 1) & support.narrow(axis, 1, size - 1)
        autocorrelation.append(average(z.narrow(axis, 0, size - 1) * z.narrow(axis, 1, size - 1), both))
    inner = support & (distance <= r / 2 ** (1 / 3))
    outer = support & ~inner
    mean_inner, mean_outer = average(z, inner), average(z, outer)
    std_inner = (average(z2, inner) - mean_inner**2).sqrt()
    std_outer = (average(z2, outer) - mean_outer**2).sqrt()
    columns = [
        *ball.unbind(1),
        a,
        b,
        dice,
        _count_components(support),
        count,
        background,
        _normal_ks(z, support),
        average(z2 * z2, support) - 3,
        *autocorrelation,
        mean_outer - mean_inner,
        std_outer / std_inner - 1,
    ]
    return dict(zip(COLUMNS, columns, strict=True))


class SphereMetric(CumulativeIterationMetric):
    """``measure_spheres`` as a metric of MONAI's: call it with batches of volumes, then ``aggregate``.

    Args:
        tolerance: see ``measure_spheres``.

    Example:
        >>> metric = SphereMetric()
        >>> _ = metric(torch.zeros(2, 1, 64, 64, 64))
        >>> metric.aggregate()["dice"]
        array([0., 0.])
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        super().__init__()
        self.tolerance = tolerance

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y_pred.ndim != 5 or y_pred.shape[1] != 1:
            raise ValueError(f"volumes must have the shape (B, 1, D, H, W), got {tuple(y_pred.shape)}.")
        return torch.stack(list(measure_spheres(y_pred, self.tolerance).values()), dim=1)

    def aggregate(self) -> dict[str, np.ndarray]:
        """Return the measurements of all volumes so far: arrays of shape (N,) under the names of ``COLUMNS``."""
        return split_columns(self.get_buffer())


def split_columns(table: torch.Tensor) -> dict[str, np.ndarray]:
    """Name the columns of a table (N, len(COLUMNS)) of measurements: arrays of shape (N,)."""
    return dict(zip(COLUMNS, table.double().cpu().numpy().T, strict=True))


def explain_invalid(measured: Mapping[str, np.ndarray], law: SphereLaw, dice_min: float = 0.97) -> list[str]:
    """Say of each volume why it is no sphere of the law.

    Args:
        measured: arrays of shape (N,), as ``SphereMetric`` gives them.
        law: the true distribution; its bounds of radius and centre must be met within half a voxel. (``a`` and ``b``
            have no unit in voxels; their whole distribution is tested instead.)
        dice_min: least overlap of the support with the fitted ball.

    Returns:
        For each volume the first reason that holds, or an empty text for a valid sphere.
    """
    rows = [dict(zip(measured, row, strict=True)) for row in np.stack(list(measured.values()), axis=1)]
    return [_explain(row, law, dice_min) for row in rows]


def _explain(row: Mapping[str, float], law: SphereLaw, dice_min: float) -> str:
    if row["voxels"] == 0:
        return "empty: every voxel is 0"
    if not (math.isfinite(row["a"]) and math.isfinite(row["b"])):
        return "not finite: voxels that are NaN or infinite"
    if row["voxels"] > 0.9 * law.size**3:  # the largest ball of the grid fills 0.52 of it
        return "no background: voxels other than 0 everywhere"
    if row["components"] > 1:
        return f"separate parts: {row['components']:.0f}"
    if row["dice"] < dice_min:
        return f"no ball: Dice {row['dice']:.3f} with the fitted one, below {dice_min}"
    slack = 0.5
    if not law.r_min - slack <= row["r"] <= law.r_max + slack:
        return f"radius outside [{law.r_min:g}, {law.r_max:g}]: {row['r']:.2f}"
    for axis in "xyz":
        if not row["r"] - slack <= row[f"c{axis}"] <= law.size - row["r"] + slack:
            return f"not wholly inside the grid along {axis}: centre {row[f'c{axis}']:.2f}, radius {row['r']:.2f}"
    return ""
