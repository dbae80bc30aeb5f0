"""Synthetic 3D spheres: solid balls of normal noise on an exactly zero background, every parameter known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from ..checks import SettingError, is_integer, is_number

PARAMETERS = ("r", "cx", "cy", "cz", "a", "b")

# Independent streams of random numbers: no volume of one is ever a volume of another, whatever the seed.
STREAMS = ("train", "validation", "test", "baseline", "reference")


@dataclass(frozen=True)
class SphereLaw:
    """The true distribution of the spheres, in voxels and intensity units.

    Voxel ``i`` has its centre at ``i + 0.5``, so that space is ``[0, size]`` along each axis. The radius ``r`` is
    uniform on (``r_min``, ``r_max``), each coordinate of the centre ``c`` uniform on (``r``, ``size - r``), the mean
    ``a`` uniform on (``a_min``, ``a_max``) and the standard deviation ``b`` uniform on (``b_min``, ``b_max``). Voxels
    whose centre is at most ``r`` from ``c`` are independent draws from N(a, b^2); all others are exactly 0.

    Args:
        size: voxels along each axis.
        r_min: lower bound of the radius, in voxels, above 0.
        r_max: upper bound of the radius, in voxels, at most half of ``size``.
        a_min: lower bound of the mean.
        a_max: upper bound of the mean.
        b_min: lower bound of the standard deviation, not negative.
        b_max: upper bound of the standard deviation, above 0.

    Raises:
        SettingError: when ``size`` is not a positive integer or a range can't be met; the message names the parameter.

    Example:
        >>> SphereLaw(size=32, r_min=8, r_max=16).a_max
        0.5
    """

    size: int = 64
    r_min: float = 16.0
    r_max: float = 32.0
    a_min: float = -0.5
    a_max: float = 0.5
    b_min: float = 0.5
    b_max: float = 1.5

    def __post_init__(self) -> None:
        if not is_integer(self.size) or self.size < 1:
            raise SettingError(f"size={self.size!r}: must be a positive integer, the voxels along each axis.")
        for name in ("r", "a", "b"):
            for bound in (f"{name}_min", f"{name}_max"):
                value = getattr(self, bound)
                if not is_number(value):
                    raise SettingError(f"{bound}={value!r}: must be a finite number.")
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise SettingError(f"{name}_min={low} is above {name}_max={high}: the lower bound must not exceed it.")
        if self.r_min <= 0:
            raise SettingError(f"r_min={self.r_min}: a radius must be above 0 voxels.")
        if self.r_max > self.size / 2:
            raise SettingError(
                f"r_max={self.r_max} is above half the grid: with size={self.size}, at most {self.size / 2} voxels."
            )
        if self.b_min < 0:
            raise SettingError(f"b_min={self.b_min}: a standard deviation must not be negative.")
        if self.b_max == 0:
            raise SettingError("b_max=0: must be above 0, for without noise a ball's values have no density.")

    def draw_parameters(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw one sphere's true parameters.

        Args:
            rng: the source of randomness.

        Returns:
            ``{"r": float, "c": float64 array of shape (3,), "a": float, "b": float}``.
        """
        r = rng.uniform(self.r_min, self.r_max)
        c = rng.uniform(r, self.size - r, size=3)
        a = rng.uniform(self.a_min, self.a_max + 0.0)  # numpy takes -0.0 for a bound below 0.0
        return {"r": r, "c": c, "a": a, "b": rng.uniform(self.b_min, self.b_max)}

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest value of one of ``PARAMETERS``, whatever the others are."""
        if name.startswith("c"):
            return self.r_min, self.size - self.r_min
        return getattr(self, f"{name}_min"), getattr(self, f"{name}_max")

    def support(self, r: float, c: np.ndarray) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Find the voxels whose centre is at most ``r`` from ``c``.

        Args:
            r: radius, in voxels.
            c: centre, shape (3,), in voxels.

        Returns:
            The ball's bounding box in the grid, and a boolean mask of the box's shape. Working in the box alone
            spares three quarters of an average volume.
        """
        box, squares = [], []
        for centre in c:
            low, high = max(int(centre - r - 0.5), 0), min(int(centre + r + 0.5) + 1, self.size)
            box.append(slice(low, high))
            squares.append((np.arange(low, high) + 0.5 - centre) ** 2)
        x2, y2, z2 = squares
        return (box[0], box[1], box[2]), z2 <= (r * r - x2[:, None, None]) - y2[:, None]


class SphereDataset(Dataset[dict[str, Any]]):
    """Map-style dataset of synthetic spheres, made on the fly.

    Item ``i`` depends on ``seed``, ``stream`` and ``i`` alone: never on the number of workers, the order of access, the
    process or the rank. An item is a dictionary: the image under ``CommonKeys.IMAGE``, shape (1, size, size, size),
    float32; the true parameters ``r``, ``a``, ``b`` (float64 scalars) and ``c`` (float64, shape (3,)); and, if asked
    for, the noise-free ``signal`` (``a`` inside, 0 outside), of the image's shape.

    Args:
        length: number of volumes.
        law: the distribution to draw from.
        seed: a non-negative integer; another seed gives other volumes.
        stream: one of ``train``, ``validation``, ``test``, and ``baseline`` and ``reference``, the two sets of real
            spheres that generated ones are read beside: disjoint sets of volumes under the same seed.
        signal: whether items carry the noise-free signal.
        transform: applied to each item.

    Raises:
        SettingError: when ``length`` or ``seed`` is no such integer, or ``stream`` is unknown.

    Example:
        >>> item = SphereDataset(length=8, law=SphereLaw(), seed=0, stream="train")[3]
        >>> tuple(item["image"].shape)
        (1, 64, 64, 64)
    """

    def __init__(
        self,
        length: int,
        law: SphereLaw,
        seed: int = 0,
        stream: str = "train",
        signal: bool = False,
        transform: Callable | None = None,
    ) -> None:
        if not is_integer(length) or length < 1:
            raise SettingError(f"length={length!r}: the number of volumes must be a positive integer.")
        if not is_integer(seed) or seed < 0:
            raise SettingError(f"seed={seed!r}: must be a non-negative integer.")
        if stream not in STREAMS:
            raise SettingError(f"stream={stream!r}: must be one of {', '.join(STREAMS)}.")
        self.length = int(length)
        self.law = law
        self.seed = int(seed)
        self.stream = stream
        self.signal = signal
        self.transform = transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} volumes.")
        # A SeedSequence per item makes the streams independent; its bit generator only draws the parameters and one
        # seed, because torch fills a ball of normals three times faster than numpy.
        source = np.random.SeedSequence(self.seed, spawn_key=(STREAMS.index(self.stream), index % self.length))
        rng = np.random.Generator(np.random.SFC64(source))
        parameters = self.law.draw_parameters(rng)
        box, inside = self.law.support(parameters["r"], parameters["c"])

        voxels = torch.Generator().manual_seed(int(rng.integers(2**63)))
        values = torch.empty(int(np.count_nonzero(inside)))
        values.normal_(parameters["a"], parameters["b"], generator=voxels)
        item: dict[str, Any] = {CommonKeys.IMAGE: self._place(box, inside, values.numpy())}
        if self.signal:
            item["signal"] = self._place(box, inside, parameters["a"])
        item.update({name: torch.as_tensor(value, dtype=torch.float64) for name, value in parameters.items()})
        return item if self.transform is None else self.transform(item)

    def _place(self, box: tuple[slice, slice, slice], inside: np.ndarray, values: np.ndarray | float) -> torch.Tensor:
        volume = np.zeros((self.law.size,) * 3, dtype=np.float32)
        volume[box][inside] = values
        return torch.from_numpy(volume)[None]
