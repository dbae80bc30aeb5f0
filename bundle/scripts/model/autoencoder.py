"""How volumes pass through MONAI's ``AutoencoderKL``: what its encoder is shown, and in which precision it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.networks.utils import pixelshuffle, pixelunshuffle
from monai.utils import CommonKeys
from torch import nn

from ..checks import SettingError
from ..distributed import randn_share
from ..environment import autocast
from .convolution import speed_up
from .distributions import ZeroInflatedNormal

# E|z| of a standard normal: the point around which |x| tells a narrow noise from a wide one.
MEAN_ABSOLUTE_NORMAL = math.sqrt(2 / math.pi)


class VolumeAutoencoder(nn.Module):
    """A variational autoencoder of volumes with an exactly zero background, around a network of MONAI's.

    The encoder sees three channels made of the one: the value, the centred absolute value and the support. Group
    normalisation takes each volume's scale away before a nonlinearity sees it; beside the support, which has a fixed
    size, the scale stays readable, and the absolute value carries the deviation of the noise to first order. Centring
    it matters: off centre, it is almost a copy of the support.

    The network works on blocks of voxels, so it needs no layers at full size, which cost the most. It is shown the mean
    of each channel over a block: in a ball of white noise, little else of a block tells about the ball, and the share
    of a block that is support tells where the surface passes through it. It returns the voxels of a block as channels.
    Blocks of latents become channels too, which makes a network on them several times faster.

    It has the methods of a first stage that ``LatentDiffusionInferer`` asks for.

    Args:
        network: MONAI's ``AutoencoderKL``, or another network with its ``encode``, ``sampling`` and ``decode``, with
            3 channels in and 3 * block_size^3 out (see ``ZeroInflatedNormal.from_channels``).
        block_size: voxels along each axis of a block; 1 lets the network see the volume itself.
        latent_block_size: latents along each axis of a block of them; 1 leaves them as the network returns them.
        dtype: type of the network's activations: ``torch.float32``, or a shorter one for autocast.
        log_variance: initial logarithm of the posterior's variance. A new network draws its latents with unit
            variance, which buries the faint traces of ``a`` and ``b``; starting quiet lets the decoder find them.
            ``None`` leaves the network as it is.
        activation_checkpointing: whether a training step keeps no activations of encoder and decoder, but computes
            them again for the gradients; by the network's own means (MONAI's ``use_checkpoint``).
        decoder_inferer: decodes volumes in windows, a ``SlidingWindowInferer`` of MONAI's; ``None`` decodes each as a
            whole. A window is normalised, and attended to, by itself, so that its voxels are others than the whole's.

    Raises:
        SettingError: when the network has other channels.
    """

    channels = 3

    def __init__(
        self,
        network: nn.Module,
        block_size: int = 1,
        latent_block_size: int = 1,
        dtype: torch.dtype = torch.float32,
        log_variance: float | None = None,
        activation_checkpointing: bool = False,
        decoder_inferer: Inferer | None = None,
    ) -> None:
        super().__init__()
        for there, name, expected in (
            (network.encoder.in_channels, "in_channels", self.channels),  # type: ignore[union-attr]
            (network.decoder.out_channels, "out_channels", self.channels * block_size**3),  # type: ignore[union-attr]
        ):
            if there != expected:
                raise SettingError(
                    f"autoencoder_def#{name}={there}: must be {expected}, for a {type(self).__name__} with "
                    f"block_size={block_size}."
                )
        self.block_size = block_size
        self.latent_block_size = latent_block_size
        # 3D convolutions on few channels run about twice as fast with the channels last.
        self.network = speed_up(network).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.dtype = dtype
        self.decoder_inferer = decoder_inferer
        if activation_checkpointing:  # by its name in MONAI, and in monai-generative
            self.network.use_checkpoint = self.network.use_checkpointing = True
        if log_variance is not None:
            nn.init.constant_(self.network.quant_conv_log_sigma.conv.bias, log_variance)

    def _show(self, x: torch.Tensor) -> torch.Tensor:
        """Make the channels that the encoder sees, averaged over blocks."""
        channels = x, x.abs(), (x != 0).to(x.dtype)
        mean, magnitude, support = (F.avg_pool3d(channel, self.block_size) for channel in channels)
        return torch.cat([mean, magnitude - MEAN_ABSOLUTE_NORMAL * support, support], dim=1)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode volumes.

        Args:
            x: shape (B, 1, D, H, W).

        Returns:
            Mean and standard deviation of the latents, each of shape (B, latent channels, d, h, w), float32.
        """
        shown = self._show(x).contiguous(memory_format=torch.channels_last_3d)
        with autocast(x, self.dtype):
            encoded = self.network.encode(shown)
        mean, deviation = (pixelunshuffle(latents.float(), 3, self.latent_block_size) for latents in encoded)
        return mean, deviation

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Decode latents.

        Args:
            z: shape (B, latent channels, d, h, w).

        Returns:
            The channels of ``ZeroInflatedNormal.from_channels``, shape (B, 3, D, H, W), float32.
        """
        return self._decode(z) if self.decoder_inferer is None else self.decoder_inferer(z, self._decode)

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        with autocast(z, self.dtype):
            blocks = self.network.decode(pixelshuffle(z, 3, self.latent_block_size))
        # Put in their places while their type is short; whoever reads one channel then reads consecutive voxels.
        voxels = pixelshuffle(blocks, 3, self.block_size)
        return voxels.to(torch.float32, memory_format=torch.contiguous_format)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Decode the mean of the latents of volumes (B, 1, D, H, W): shape (B, 3, D, H, W)."""
        return self.decode(self.encode(x)[0])

    def denoise(self, x: torch.Tensor) -> torch.Tensor:
        """Return the expected volume that the mean of the latents of ``x`` decodes to, shape (B, 1, D, H, W)."""
        return ZeroInflatedNormal.from_channels(self.reconstruct(x)).mean

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode volumes (B, 1, D, H, W), draw latents, decode: (channels, latent mean, latent deviation)."""
        mean, deviation = self.encode(x)
        return self.decode(mean + deviation * randn_share(deviation)), mean, deviation

    def encode_stage_2_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Draw latents of volumes, unscaled, for the diffusion model."""
        return self.network.sampling(*self.encode(x))

    def decode_stage_2_outputs(self, z: torch.Tensor) -> torch.Tensor:
        """Decode unscaled latents of the diffusion model, as ``decode``."""
        return self.decode(z)


class DeterministicAutoencoder(VolumeAutoencoder):
    """The autoencoder of most tutorials, to compare with: one channel in, the values themselves out.

    Where ``VolumeAutoencoder`` decodes a distribution over voxels, this one decodes a value for each; to everything
    downstream it is a distribution that always returns that value, with no voxel exactly 0.

    Args:
        network: as for ``VolumeAutoencoder``, with 1 channel in and block_size^3 out.
        block_size: as there, and so are all that follow.

    Attributes:
        kl: Kullback-Leibler divergence of the last forward pass's latents from N(0, 1), summed over the latents of a
            volume and averaged over the batch, nats.
    """

    channels = 1
    kl: torch.Tensor

    def _show(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(x, self.block_size)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Decode latents as ``VolumeAutoencoder.decode``: (certainly foreground, value, least deviation)."""
        value = super().decode(z)
        return torch.cat([torch.full_like(value, 100.0), value, torch.full_like(value, -100.0)], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Encode volumes (B, 1, D, H, W), draw latents, decode: values of the same shape."""
        mean, deviation = self.encode(x)
        self.kl = 0.5 * (mean**2 + deviation**2 - 2 * deviation.log() - 1).sum() / len(x)
        return super().decode(mean + deviation * randn_share(deviation))


class VolumeReconstructor(nn.Module):
    """An autoencoder as a network of one input and one output, which MONAI's checks and exporters ask for.

    Args:
        autoencoder: reconstructs the volumes.
    """

    def __init__(self, autoencoder: VolumeAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct volumes (B, 1, D, H, W); returns the decoder's channels (B, 3, D, H, W)."""
        return self.autoencoder.reconstruct(x)


class ReconstructionInferer(Inferer):
    """Runs an autoencoder on the mean of the latents, instead of a draw: the same volume, the same reconstruction."""

    def __call__(self, inputs: torch.Tensor, network: VolumeAutoencoder) -> torch.Tensor:  # type: ignore[override]
        """Reconstruct volumes (B, 1, D, H, W); returns the decoder's channels (B, 3, D, H, W)."""
        return network.reconstruct(inputs)


def prepare_batch(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch's volumes twice, as what an autoencoder is given and what it is to return."""
    image = take_volumes(batch, device, non_blocking)
    return image, image


def take_volumes(batch: object, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
    """Return a batch's volumes, (B, 1, D, H, W), on a device.

    Raises:
        SettingError: when it holds none, as one of a dataset that was replaced by names of files does.
    """
    image = batch.get(CommonKeys.IMAGE) if isinstance(batch, Mapping) else None
    if not isinstance(image, torch.Tensor):
        raise SettingError(
            f"dataset#data: its items hold no volume under {str(CommonKeys.IMAGE)!r}; must be dictionaries with one. "
            "Names of files are read where dataset_dir is set."
        )
    return image.to(device, non_blocking=non_blocking)
