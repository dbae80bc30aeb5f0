"""The generator as files that run without this repository: an exported program, and ONNX of its noise-free part."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.schedulers import RFlowScheduler
from torch import nn
from torch.export import Dim

from ..atomic import replacing
from ..checks import SettingError
from ..environment import autocast
from ..model.distributions import ZeroInflatedNormal
from ..model.generator import VolumeGenerator
from ..model.tokens import ConditionTokens

logger = logging.getLogger(__name__)

ANY_BATCH = {0: Dim("batch", min=1, max=1024)}


class UnrolledGenerator(nn.Module):
    """A ``VolumeGenerator`` with its sampler's steps as a plain loop, which ``torch.export`` can follow.

    ``LatentDiffusionInferer`` reads each timestep out of a tensor, and the exporter can't tell it beforehand; here the
    timesteps are Python's numbers. The steps themselves are the scheduler's.

    Args:
        generator: with weights, in evaluation mode.
        texture: whether to return volumes, with a fresh draw of their voxels in each call; else what is known of each
            voxel before the draw.
    """

    def __init__(self, generator: VolumeGenerator, texture: bool = True) -> None:
        super().__init__()
        self.generator = generator
        self.texture = texture
        timesteps = generator.scheduler.timesteps.tolist()
        self.timesteps = list(zip(timesteps, [*timesteps[1:], 0], strict=True))

    def forward(self, noise: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Generate.

        Args:
            noise: standard normal latents (B, C, d, h, w).
            condition: what is asked for, (B, K), NaN where a value is free, of a generator that knows conditions.

        Returns:
            Volumes (B, 1, D, H, W); or, without texture, (B, 3, D, H, W): the probability that a voxel is not
            background, and the mean and standard deviation of its value if it is not.
        """
        scheduler, sample = self.generator.scheduler, noise
        tokens = None if self.generator.tokens is None else self.generator.tokens(condition)
        for timestep, following in self.timesteps:
            times = torch.full((1,), timestep, dtype=torch.float32, device=noise.device)
            with autocast(noise, self.generator.autoencoder.dtype):
                output = self._predict(sample, times, tokens)
            step = (timestep, sample, following) if isinstance(scheduler, RFlowScheduler) else (timestep, sample)
            sample = scheduler.step(output, *step)[0]  # type: ignore[operator]
        channels = self.generator.autoencoder.decode_stage_2_outputs(sample / self.generator.scale_factor)
        voxels = ZeroInflatedNormal.from_channels(channels)
        if self.texture:
            return voxels.draw(torch.randn_like(voxels.loc))
        return torch.cat([voxels.probs, voxels.loc, voxels.scale], dim=1)

    def _predict(self, sample: torch.Tensor, times: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        network, guidance = self.generator.diffusion_model, self.generator.guidance
        output = network(sample, timesteps=times, context=tokens)
        if guidance == 1 or tokens is None:
            return output
        free = network(sample, timesteps=times, context=torch.full_like(tokens, ConditionTokens.FREE))
        return free + guidance * (output - free)


def export_program(generator: VolumeGenerator, latent_shape: Sequence[int], path: str | os.PathLike) -> None:
    """Export the whole generator by ``torch.export``, for any number of volumes at a time.

    ``torch.export.load(path).module()(noise)`` returns volumes, other ones in each call. With conditions it takes what
    is asked for as well, (B, K), NaN where a value is free.

    Args:
        generator: with weights; exported in its precision, for its device.
        latent_shape: channels and size of the latents.
        path: the file to write (``.pt2``); its folder is made.
    """
    model, example = UnrolledGenerator(generator).eval(), _make_example(generator, latent_shape)
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=(ANY_BATCH,) * len(example))
    with replacing(path) as partial:
        torch.export.save(program, partial)
    _log(path)


def export_onnx(generator: VolumeGenerator, latent_shape: Sequence[int], path: str | os.PathLike) -> None:
    """Export the noise-free part of the generator as ONNX, for any number of volumes at a time.

    Args:
        generator: with weights; exported in its precision, of which onnxruntime's CPU provider takes float32 alone.
        latent_shape: channels and size of the latents.
        path: the file to write (``.onnx``); its folder is made. Its inputs are ``noise`` and, of a generator that knows
            conditions, ``condition``; its output is ``voxels``, as ``UnrolledGenerator`` returns without texture. A
            volume is then, with ``p, mean, std`` its channels and ``z`` standard normal,
            ``where(p > 0.5, mean + std * z, 0)``.

    Raises:
        SettingError: when a package that writes ONNX is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingError(f"'run onnx' needs {' and '.join(missing)}: pip install onnx onnxscript")
    model, example = UnrolledGenerator(generator, texture=False).eval(), _make_example(generator, latent_shape)
    with torch.no_grad(), replacing(path) as partial:
        torch.onnx.export(
            model,
            example,
            os.fspath(partial),
            dynamo=True,
            input_names=["noise", "condition"][: len(example)],
            output_names=["voxels"],
            dynamic_shapes=(ANY_BATCH,) * len(example),
            external_data=False,  # one file, which can be copied
            verbose=False,
        )
    _log(path)


def _make_example(generator: VolumeGenerator, latent_shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    # of two volumes, for the exporters take a size of 1 for one that never changes
    noise = torch.zeros(2, *latent_shape, device=generator.scale_factor.device)
    return (noise,) if generator.tokens is None else (noise, generator.tokens.free(2))


def _log(path: str | os.PathLike) -> None:
    logger.info("exported %s, %.1f MB", path, Path(path).stat().st_size / 1e6)
