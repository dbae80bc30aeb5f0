"""What the diffusion model reads: a dataset encoded once into latents, and the noise that samples start from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import CommonKeys
from torch.utils.data import Dataset
from tqdm import tqdm

from .autoencoder import VolumeAutoencoder

logger = logging.getLogger(__name__)


class EncodedLatents(Dataset):
    """The latents of a dataset of volumes, encoded once and drawn afresh each time an item is read.

    The autoencoder is frozen, so one pass over the volumes gives the mean and deviation of their latents; a few
    megabytes hold what would otherwise be encoded again in every epoch. An item is
    ``{CommonKeys.IMAGE: scaled latents, shape (C, d, h, w)}``.

    Args:
        data: batches of volumes, ``{CommonKeys.IMAGE: (B, 1, D, H, W)}``.
        autoencoder: the frozen autoencoder; it stays on its own device.
        scale_factor: what latents are multiplied with; ``None`` measures it over the whole dataset, as Rombach et al.
            (2022), "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G, do over one batch: the
            inverse of the standard deviation of all latents.
        fresh: whether an item is another draw at each reading; else item ``i`` is always the same draw, so that
            validation losses can be compared.

    Attributes:
        scale_factor: what the latents are multiplied with, a float.
    """

    def __init__(
        self,
        data: Iterable[dict[str, torch.Tensor]],
        autoencoder: VolumeAutoencoder,
        scale_factor: float | None = None,
        fresh: bool = True,
    ) -> None:
        device = next(autoencoder.parameters()).device
        means, deviations = [], []
        autoencoder.eval()
        with torch.no_grad():
            for batch in tqdm(data, desc="encoding", unit="batch", leave=False):
                mean, deviation = autoencoder.encode(batch[CommonKeys.IMAGE].to(device))
                # Copied into numpy's memory: kept as they are, among the encoder's large activations, these small
                # tensors fragment the host's memory: 22 GB of it over 8,192 volumes.
                means.append(mean.cpu().numpy().copy())
                deviations.append(deviation.cpu().numpy().copy())
        self.mean = torch.from_numpy(np.concatenate(means))
        self.deviation = torch.from_numpy(np.concatenate(deviations))
        if scale_factor is None:
            # law of total variance: that of the means, and what each draw adds
            variance = self.mean.double().var() + self.deviation.double().square().mean()
            scale_factor = float(variance.rsqrt())
            logger.info("scale factor %.6f, over the latents of %d volumes", scale_factor, len(self))
        self.scale_factor = scale_factor
        self.fresh = fresh

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = None if self.fresh else torch.Generator().manual_seed(index)
        noise = torch.randn(self.mean.shape[1:], generator=generator)
        return {CommonKeys.IMAGE: (self.mean[index] + self.deviation[index] * noise) * self.scale_factor}


class LatentNoise(Dataset):
    """Standard normal noise for a generator of volumes, by seed and index.

    Item ``i`` of seed ``s`` is always the same: ``CommonKeys.IMAGE`` is the latent noise, of ``latent_shape``;
    ``texture`` the noise of the voxels, of ``volume_shape``; ``index`` is ``i``.

    Args:
        length: number of volumes to generate.
        latent_shape: channels and size of the latents.
        volume_shape: channels and size of a volume.
        seed: a non-negative integer; another seed gives other volumes.
    """

    def __init__(self, length: int, latent_shape: Sequence[int], volume_shape: Sequence[int], seed: int = 0) -> None:
        self.length = length
        self.latent_shape = tuple(latent_shape)
        self.volume_shape = tuple(volume_shape)
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} volumes.")
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
        latents = rng.standard_normal(self.latent_shape, dtype=np.float32)
        texture = rng.standard_normal(self.volume_shape, dtype=np.float32)
        return {CommonKeys.IMAGE: torch.from_numpy(latents), "texture": torch.from_numpy(texture), "index": index}
