"""The sphere in a volume: its parameters and texture, measured from the volume alone."""

from __future__ import annotations

import numpy as np
import torch
from monai.utils import CommonKeys
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.spheres import PARAMETERS
from .ball import distances, fit_ball

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


def _normal_ks(z: torch.Tensor) -> torch.Tensor:
    """Largest distance of the distribution of ``z``, shape (N,), from the standard normal one."""
    edges = torch.linspace(-4, 4, 257, dtype=torch.float64, device=z.device)[1:]
    share = torch.histc(z.clamp(-4, 4), bins=256, min=-4, max=4).double().cumsum(0) / len(z)
    return (share - torch.special.ndtr(edges)).abs()[:-1].max()


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

    Raises:
        ValueError: when the volumes have another shape.
    """
    if volumes.ndim != 5 or volumes.shape[1] != 1:
        raise ValueError(f"volumes must have the shape (B, 1, D, H, W), got {tuple(volumes.shape)}.")
    rows = [_measure_sphere(values, tolerance) for values in volumes[:, 0].float()]
    return {name: torch.stack([row[name] for row in rows]).double() for name in COLUMNS}


def _measure_sphere(values: torch.Tensor, tolerance: float) -> dict[str, torch.Tensor]:
    """Measure one volume (D, H, W), which fits a processor's cache where a batch does not."""
    support = values.abs() > tolerance if tolerance > 0 else values != 0
    ball = fit_ball(support.float())
    distance = distances(torch.nan_to_num(ball), tuple(support.shape))
    r = torch.nan_to_num(ball[0]).float()
    places = support.flatten().nonzero().squeeze(1)
    # the values, and how far they are from the centre
    inside, apart = values.flatten()[places].double(), distance[places]
    count = inside.new_tensor(len(places))
    dice = 2 * (apart <= r).count_nonzero() / ((distance <= r).count_nonzero() + count).clamp_min(1)
    outside = distance > r + BACKGROUND_MARGIN
    background = outside[places].count_nonzero() / outside.count_nonzero().double()

    a = inside.mean()
    a = torch.where(a.isfinite(), a, torch.nan)
    b = (inside - a).square().mean().sqrt()
    z = (inside - a) / b
    # a constant ball has no texture (0 / 0); one that is not finite stays NaN
    z = torch.where(a.isfinite(), torch.nan_to_num(z, posinf=0.0, neginf=0.0), torch.nan)
    placed = torch.zeros(values.numel(), device=values.device)
    placed[places] = z.float()
    placed = placed.view(values.shape)

    def autocorrelate(axis: int) -> torch.Tensor:
        size = support.shape[axis] - 1
        first, second = (x.narrow(axis, 0, size) * x.narrow(axis, 1, size) for x in (placed, support))
        return first.sum().double() / second.count_nonzero()

    def deviate(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()).square().mean().sqrt()

    is_inner = apart <= r / 2 ** (1 / 3)
    inner, outer = z[is_inner], z[~is_inner]
    return {
        **dict(zip(("r", "cx", "cy", "cz"), ball, strict=True)),
        "a": a,
        "b": b,
        "dice": dice,
        "components": count.new_tensor(ndimage.label(support.cpu().numpy())[1]),
        "voxels": count,
        "background": background,
        "normal_ks": _normal_ks(z),
        "kurtosis": (z**4).mean() - 3,
        **{f"autocorrelation_{name}": autocorrelate(axis) for axis, name in enumerate("xyz")},
        "rim_mean": outer.mean() - inner.mean(),
        "rim_std": deviate(outer) / deviate(inner) - 1,
    }


class _Measurements(Dataset[torch.Tensor]):
    """What ``measure_spheres`` finds in each volume of a dataset, shape (len(COLUMNS),)."""

    def __init__(self, volumes: Dataset, tolerance: float, device: torch.device | str) -> None:
        self.volumes = volumes
        self.tolerance = tolerance
        self.device = device

    def __len__(self) -> int:
        return len(self.volumes)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> torch.Tensor:
        measured = measure_spheres(self.volumes[index][CommonKeys.IMAGE][None].to(self.device), self.tolerance)
        return torch.cat([measured[name] for name in COLUMNS])


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
        batch_size: volumes between two steps of the progress bar.
        num_workers: processes that make and measure the volumes, on the CPU; 0 measures them in this one.
        tolerance: see ``measure_spheres``.
        device: where they are measured in this process.

    Returns:
        Arrays of shape (N,) under the names of ``COLUMNS``.
    """
    rows = _Measurements(volumes, tolerance, "cpu" if num_workers else device)
    batches = tqdm(DataLoader(rows, batch_size, num_workers=num_workers), desc="measuring", leave=False)
    table = torch.cat([batch.cpu() for batch in batches]).numpy()
    return dict(zip(COLUMNS, table.T, strict=True))
