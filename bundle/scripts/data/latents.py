"""What the diffusion model reads: a dataset encoded once into latents, and the noise that samples start from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import CommonKeys
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..distributed import gather_shares, take_share
from ..model.autoencoder import VolumeAutoencoder, take_volumes
from ..model.tokens import CONDITION
from .conditions import ConditionedVolumes

logger = logging.getLogger(__name__)


class EncodedLatents(Dataset):
    """The latents of a dataset of volumes, encoded once.

    The autoencoder is frozen, so one pass over the volumes gives their latents, a kilobyte for each, and not one in
    every epoch. The pass waits for the first item, or the scale factor, to be read; of several processes each encodes
    its share. An item is a dictionary: under ``CommonKeys.IMAGE`` the scaled latents, shape (C, d, h, w); ``index``;
    and under ``CONDITION``, if some are named, the numbers that go with the volume, shape (K,), NaN where one is
    missing.

    Of the autoencoder's posterior it takes the mean, not a draw. The draw's noise would be decoded too: it blurs radius
    and centre by more than the decoder's own error, and a diffusion model that has learned it returns it.

    Args:
        data: volumes, (1, D, H, W) under ``CommonKeys.IMAGE``.
        autoencoder: the frozen autoencoder; it stays on its own device.
        batch_size: volumes encoded at a time.
        num_workers: processes that make the volumes.
        scaled_as: another set of latents, whose scale factor to use; ``None`` measures it over this dataset, as Rombach
            et al. (2022), "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G, do over one
            batch: the inverse of the standard deviation of all latents.
        conditions: names of the K numbers of each volume that go with its latents, as ``read_condition`` knows them.

    Attributes:
        scale: what the latents are multiplied with, a tensor without dimensions; NaN until they are encoded, then
            filled in place, for whoever holds it.
    """

    def __init__(
        self,
        data: Dataset,
        autoencoder: VolumeAutoencoder,
        batch_size: int = 8,
        num_workers: int = 0,
        scaled_as: EncodedLatents | None = None,
        conditions: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.autoencoder = autoencoder
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.scaled_as = scaled_as
        self.conditions = tuple(conditions)
        self.scale = torch.tensor(math.nan)

    @property
    def latents(self) -> torch.Tensor:
        """The unscaled latents of all volumes, (N, C, d, h, w); encodes them."""
        return self.encoded[0]

    @cached_property
    def encoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The unscaled latents of all volumes, (N, C, d, h, w), and their numbers, (N, K); encodes the volumes."""
        device = next(self.autoencoder.parameters()).device
        # A generator of its own, for the pass must not change what a training draws around it.
        generator = torch.Generator()
        share = take_share(ConditionedVolumes(self.data, self.conditions) if self.conditions else self.data)
        batches = DataLoader(share, self.batch_size, num_workers=self.num_workers, generator=generator)
        latents, numbers = [], []
        self.autoencoder.eval()
        with torch.no_grad():
            for batch in tqdm(batches, "encoding", unit="batch", leave=False, disable=idist.get_rank() > 0):
                mean, _ = self.autoencoder.encode(take_volumes(batch, device))
                # Both are copied into numpy's memory: kept as they are, among the encoder's large activations, these
                # small tensors fragment the host's memory: 22 GB of it over 8,192 volumes.
                latents.append(mean.cpu().numpy().copy())
                if self.conditions:
                    numbers.append(batch[CONDITION].numpy().copy())
        whole = gather_shares(torch.from_numpy(np.concatenate(latents)))
        known = gather_shares(torch.from_numpy(np.concatenate(numbers))) if numbers else whole.new_empty(len(whole), 0)
        return whole, known

    @cached_property
    def scale_factor(self) -> float:
        """What the latents are multiplied with; encodes what it is measured over."""
        if self.scaled_as is not None:
            factor = self.scaled_as.scale_factor
        else:
            factor = 1 / float(self.latents.double().std())
            logger.info("scale factor %.6f, over the latents of %d volumes", factor, len(self))
        self.scale.fill_(factor)
        return factor

    def draw(self, count: int) -> torch.Tensor:
        """Draw scaled latents at random, with replacement, shape (count, C, d, h, w); alike in all processes."""
        return self.latents[torch.randint(len(self.latents), (count,))] * self.scale_factor

    def state_dict(self) -> dict[str, float]:
        """Return the scale factor, for a checkpoint."""
        return {"scale_factor": self.scale_factor}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Take over the scale factor, which is then not measured again."""
        self.scale_factor = state_dict["scale_factor"]
        self.scale.fill_(self.scale_factor)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the items of a batch, which ``DataLoader`` then asks for at once: several times faster."""
        latents, numbers = (part[indices] for part in self.encoded)
        rows = zip(latents * self.scale_factor, indices, strict=True)
        items: list[dict[str, Any]] = [{CommonKeys.IMAGE: latents, "index": index} for latents, index in rows]
        if self.conditions:
            items = [{**item, CONDITION: row} for item, row in zip(items, numbers, strict=True)]
        return items


class LatentNoise(Dataset):
    """Standard normal noise for a generator of volumes, by seed and index.

    Item ``i`` of seed ``s`` is always the same: ``CommonKeys.IMAGE`` is the latent noise, of ``latent_shape``;
    ``texture`` the noise of the voxels, of ``volume_shape``; ``index`` is ``i``; under ``CONDITION``, if volumes are
    asked for, stands request ``i``.

    Args:
        length: number of volumes to generate.
        latent_shape: channels and size of the latents.
        volume_shape: channels and size of a volume.
        seed: a non-negative integer; another seed gives other volumes.
        requests: what each volume is asked for, (length, K), as ``read_requests`` returns it.
    """

    def __init__(
        self,
        length: int,
        latent_shape: Sequence[int],
        volume_shape: Sequence[int],
        seed: int = 0,
        requests: torch.Tensor | None = None,
    ) -> None:
        self.length = length
        self.latent_shape = tuple(latent_shape)
        self.volume_shape = tuple(volume_shape)
        self.seed = seed
        self.requests = requests

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} volumes.")
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
        latents = rng.standard_normal(self.latent_shape, dtype=np.float32)
        texture = rng.standard_normal(self.volume_shape, dtype=np.float32)
        item = {CommonKeys.IMAGE: torch.from_numpy(latents), "texture": torch.from_numpy(texture), "index": index}
        return item if self.requests is None else {**item, CONDITION: self.requests[index]}
