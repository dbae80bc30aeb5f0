"""The distribution over voxels that the decoder returns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.distributions import Distribution, Normal, constraints

# Bounds of the logarithm of a voxel's standard deviation: beyond them exp() would only feed overflow to the loss.
LOG_SCALE_BOUNDS = (-7.0, 7.0)


def split_channels(channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split a decoder's output.

    Args:
        channels: shape (B, 3, ...): log-odds of not being background, mean, logarithm of the deviation.

    Returns:
        The three in float32, each (B, 1, ...), the last within ``LOG_SCALE_BOUNDS``.

    Raises:
        ValueError: when there are not three channels.
    """
    if channels.shape[1] != 3:
        raise ValueError(f"a decoder returns 3 channels (logit, mean, log deviation), got {channels.shape[1]}.")
    logits, loc, log_scale = channels.float().chunk(3, dim=1)
    return logits, loc, F.hardtanh(log_scale, *LOG_SCALE_BOUNDS)  # clamp, with a backward of one pass


class ZeroInflatedNormal(Distribution):
    """A voxel that is exactly 0 with probability 1 - p, and else a draw from a normal distribution.

    The voxels inside a sphere are white noise, which no code of a few hundred numbers can carry: a deterministic
    decoder returns their smooth mean and loses the texture. This one returns what can be known of each voxel: whether
    it is background, and the law of its value if not. Skull-stripped scans, whose background is exactly 0, fit too.

    Args:
        logits: log-odds that a voxel is not background.
        loc: mean of its value if it is not, broadcastable with ``logits``.
        scale: standard deviation of that value, positive, broadcastable with ``logits``.
        validate_args: as in ``torch.distributions``.

    Example:
        >>> voxels = ZeroInflatedNormal(torch.tensor(0.0), torch.tensor(2.0), torch.tensor(1.0))
        >>> voxels.mean
        tensor(1.)
    """

    arg_constraints = {  # noqa: RUF012  # a class attribute of this form is torch.distributions' own protocol
        "logits": constraints.real,
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real

    def __init__(
        self, logits: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor, validate_args: bool | None = False
    ) -> None:
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        super().__init__(self.logits.shape, validate_args=validate_args)

    @classmethod
    def from_channels(cls, channels: torch.Tensor) -> ZeroInflatedNormal:
        """Read a decoder's output.

        Args:
            channels: as for ``split_channels``.

        Returns:
            The distribution over voxels, batch shape (B, 1, ...), in float32 whatever the precision of the network.

        Raises:
            ValueError: when there are not three channels.
        """
        logits, loc, log_scale = split_channels(channels)
        return cls(logits, loc, log_scale.exp())

    @property
    def probs(self) -> torch.Tensor:
        """Probability that a voxel is not background."""
        return self.logits.sigmoid()

    @property
    def is_foreground(self) -> torch.Tensor:
        """Whether a voxel is more likely foreground than background (boolean)."""
        return self.logits > 0

    @property
    def mean(self) -> torch.Tensor:
        """Expected value."""
        return self.probs * self.loc

    @property
    def mode(self) -> torch.Tensor:
        """The mean of the likelier part: ``loc`` where foreground is likelier, 0 elsewhere."""
        return torch.where(self.is_foreground, self.loc, 0.0)

    @property
    def variance(self) -> torch.Tensor:
        """Variance, by the law of total variance."""
        return self.probs * (self.scale**2 + self.loc**2) - self.mean**2

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Logarithm of the density (probability, at exactly 0) of ``value``; broadcastable with the batch shape."""
        foreground = value != 0
        return torch.where(
            foreground,
            F.logsigmoid(self.logits) + Normal(self.loc, self.scale, validate_args=False).log_prob(value),
            F.logsigmoid(-self.logits),
        )

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """Turn standard normal noise into voxels: a draw of the value where foreground is the likelier, 0 elsewhere.

        Unlike ``sample`` it does not draw the support too. Voxel by voxel, that would roughen every surface: the doubt
        about one voxel of it is not independent of the doubt about the next.

        Args:
            noise: standard normal, of the batch shape.

        Returns:
            Voxels, of the batch shape.
        """
        return torch.where(self.is_foreground, self.loc + self.scale * noise, 0.0)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        """Draw voxels, shape ``sample_shape + batch_shape``, from torch's global random numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like = self.logits.expand(shape)
        return torch.where(torch.rand_like(like) < self.probs, self.loc + self.scale * torch.randn_like(like), 0.0)
