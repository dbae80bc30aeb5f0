"""The sphere in a volume: its parameters and texture, measured from the volume alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import CommonKeys
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .ball import distances, fit_ball, grid_of

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

# Voxels further outside the fitted ball than this (voxels) are background, whatever the roughness of the surface.
BACKGROUND_MARGIN = 4.0


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
    _, distance = distances(torch.nan_to_num(ball), grid_of(support.shape[1:], support.device))
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

    def autocorrelate(axis: int) -> torch.Tensor:
        first, second = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        return average(z[first] * z[second], support[first] & support[second])

    inner = support & (distance <= r / 2 ** (1 / 3))
    outer = support & ~inner
    mean_inner, mean_outer = average(z, inner), average(z, outer)
    std_inner = (average(z2, inner) - mean_inner**2).sqrt()
    std_outer = (average(z2, outer) - mean_outer**2).sqrt()
    return {
        **dict(zip(("r", "cx", "cy", "cz"), ball.unbind(1), strict=True)),
        "a": a,
        "b": b,
        "dice": dice,
        "components": _count_components(support),
        "voxels": count,
        "background": background,
        "normal_ks": _normal_ks(z, support),
        "kurtosis": average(z2 * z2, support) - 3,
        **{f"autocorrelation_{name}": autocorrelate(axis) for axis, name in enumerate("xyz", start=1)},
        "rim_mean": mean_outer - mean_inner,
        "rim_std": std_outer / std_inner - 1,
    }


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
        measured = measure_spheres(y_pred, self.tolerance)
        return torch.stack([measured[name] for name in COLUMNS], dim=1)

    def aggregate(self) -> dict[str, np.ndarray]:
        """Return the measurements of all volumes so far: arrays of shape (N,) under the names of ``COLUMNS``."""
        return split_columns(self.get_buffer())


def split_columns(table: torch.Tensor) -> dict[str, np.ndarray]:
    """Name the columns of a table (N, len(COLUMNS)) of measurements: arrays of shape (N,)."""
    return dict(zip(COLUMNS, table.double().cpu().numpy().T, strict=True))


def measure_dataset(
    volumes: Dataset,
    batch_size: int = 16,
    num_workers: int = 0,
    tolerance: float = 0.0,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Measure every volume of a dataset.

    Args:
        volumes: N items with volumes (1, D, H, W) under ``CommonKeys.IMAGE``.
        batch_size: volumes measured at a time.
        num_workers: processes that make the volumes.
        tolerance: see ``measure_spheres``.
        device: where they are measured.

    Returns:
        Arrays of shape (N,) under the names of ``COLUMNS``.
    """
    metric = SphereMetric(tolerance)
    for batch in tqdm(DataLoader(volumes, batch_size, num_workers=num_workers), desc="measuring", leave=False):
        metric(batch[CommonKeys.IMAGE].to(device))
    return metric.aggregate()
