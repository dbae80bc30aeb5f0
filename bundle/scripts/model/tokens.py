"""What a volume is asked for, as the tokens that a diffusion model's cross-attention reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

# Sines and cosines of a value, as Tancik et al. (2020), "Fourier Features Let Networks Learn High Frequency Functions
# in Low Dimensional Domains"; the shortest wave is half of the range: 16 voxels for a centre.
HARMONICS = 4
# Entries that a token has for each condition: that it is known, its value, and the value's sines and cosines.
FEATURES = 2 + 2 * HARMONICS
CONDITION = "condition"  # the key of the numbers that go with an item


class ConditionTokens(nn.Module):
    """Makes one token of each condition, such as a sphere's radius: its value, or that it is free.

    A value is put on the scale from -1 to 1 of its own range, whatever the other values are, so that a token means the
    same whichever others are free. (Under the law of the spheres (c - r) / (size - 2 r) is uniform; but it is unknown
    where ``r`` is free, and has no value where ``r`` is half the grid.)

    Of the K * ``FEATURES`` entries of a token each condition has its own: a token tells which it is by where its
    entries stand, and attention can add up the values of all tokens without mixing them. All entries of a free
    condition are ``FREE``. So MONAI's classifier-free guidance, which fills the tokens with one constant, asks for a
    volume of which all is free; and what attention takes from a free token is zero, for it has no bias on it.

    Args:
        names: the K conditions.
        ranges: least and greatest value of each, shape (K, 2); ``None`` leaves them to the weights that are loaded.

    Attributes:
        ranges: as the argument, float64, part of the state dict.
        text: the names, as the bytes of their JSON, part of the state dict.
    """

    FREE = 0.0

    def __init__(self, names: Sequence[str], ranges: Sequence[Sequence[float]] | torch.Tensor | None = None) -> None:
        super().__init__()
        self.names = tuple(names)
        known = torch.full((len(self.names), 2), math.nan) if ranges is None else ranges
        self.ranges: torch.Tensor
        self.register_buffer("ranges", torch.as_tensor(known, dtype=torch.float64).clone())
        self.text: torch.Tensor
        self.register_buffer("text", torch.tensor(list(json.dumps(self.names).encode()), dtype=torch.uint8))

    @property
    def dimension(self) -> int:
        """Length of a token, which the network knows as ``cross_attention_dim``."""
        return len(self.names) * FEATURES

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Make the tokens, shape (B, K, K * FEATURES), of values (B, K), NaN where one is free."""
        low, high = self.ranges.to(values).unbind(dim=1)
        known = values.isfinite()
        # a range of one value, which the law may have, divides by 1
        scaled = torch.where(known, 2 * (values - low) / torch.where(high > low, high - low, 1.0) - 1, 0.0)[..., None]
        angles = scaled * (math.pi / 2) * torch.arange(1, HARMONICS + 1, device=values.device)
        features = torch.cat([torch.ones_like(scaled), scaled, angles.sin(), angles.cos()], dim=-1)
        features = torch.where(known[..., None], features, self.FREE)
        places = torch.eye(len(self.names), dtype=values.dtype, device=values.device)
        return (features[:, :, None] * places[:, :, None]).flatten(2)

    def free(self, count: int) -> torch.Tensor:
        """Return values (count, K) that ask for nothing."""
        return torch.full((count, len(self.names)), math.nan, device=self.ranges.device)


def read_names(weights: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Read from a generator's state dict the conditions that its training knew; none, where it knew none."""
    key = "tokens.text"
    return tuple(json.loads(bytes(weights[key].tolist()))) if key in weights else ()
