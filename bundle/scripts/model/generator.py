"""The whole model as one network, from latent noise to volumes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import Inferer, LatentDiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import RFlowScheduler, Scheduler
from torch import nn

from ..checks import SettingError
from ..environment import autocast
from .autoencoder import VolumeAutoencoder
from .convolution import speed_up
from .distributions import ZeroInflatedNormal
from .scripting import TracedWhenScripted
from .tokens import ConditionTokens, read_names


class VolumeGenerator(TracedWhenScripted):
    """From latent noise to volumes: every step of the sampler, the scale factor, the decoder and the draw of voxels.

    Its state dict is all that generation needs, and what a sampler has to know of the training: weights that were
    trained with other timesteps, or for the other kind of process, are refused.

    Args:
        diffusion_model: the noise predictor, MONAI's ``DiffusionModelUNet``.
        autoencoder: decodes the latents; both networks run in its precision.
        scheduler: the sampler, MONAI's ``RFlowScheduler``, ``DDIMScheduler`` or ``DDPMScheduler``.
        num_inference_steps: steps of the sampler.
        inferer: makes an inferer with the ``sample`` of ``LatentDiffusionInferer`` from scheduler and scale factor.
        scale_factor: what the latents were multiplied with in training; a tensor is held as it is, and may be filled
            later; loaded weights bring their own.
        tokens: the conditions that the diffusion model knows; ``None`` for one that knows none.
        guidance: how much more than asked the velocity follows the request: that for nothing asked, plus so many times
            the difference of the two (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"); 1 is none.

    Raises:
        SettingError: when ``DDPMScheduler`` is asked for another number of steps than it was trained with, or
            ``DDIMScheduler`` for one that does not divide it, or when the two networks' latents have not the same
            channels, or when the diffusion model knows conditions and there are no ``tokens``, or the other way round,
            or as ``check_guidance``.
    """

    def __init__(
        self,
        diffusion_model: DiffusionModelUNet,
        autoencoder: VolumeAutoencoder,
        scheduler: Scheduler,
        num_inference_steps: int,
        inferer: Callable[..., LatentDiffusionInferer] = LatentDiffusionInferer,
        scale_factor: float | torch.Tensor = 1.0,
        tokens: ConditionTokens | None = None,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model
        speed_up(diffusion_model)
        self.autoencoder = autoencoder
        latent_channels = autoencoder.network.latent_channels * autoencoder.latent_block_size**3
        for name in ("in_channels", "out_channels"):
            if getattr(diffusion_model, name) != latent_channels:
                raise SettingError(
                    f"diffusion_def#{name}={getattr(diffusion_model, name)}: must be {latent_channels}, the "
                    "latent_channels of autoencoder_def in a block of latent_block_size^3."
                )
        if getattr(diffusion_model, "with_conditioning", False) != (tokens is not None):
            names = [] if tokens is None else list(tokens.names)
            need = "names with configs/conditional.json merged over this config, after other overlays, and none without"
            raise SettingError(f"conditions={names}: must be {need}.")
        self.tokens = tokens
        self.guidance = guidance
        self.scale_factor: torch.Tensor
        self.register_buffer("scale_factor", torch.as_tensor(scale_factor))
        self.num_train_timesteps: torch.Tensor
        self.register_buffer("num_train_timesteps", torch.tensor(scheduler.num_train_timesteps))
        self.rectified_flow: torch.Tensor
        self.register_buffer("rectified_flow", torch.tensor(isinstance(scheduler, RFlowScheduler)))
        self.register_load_state_dict_pre_hook(_check_training)
        steps = f"num_inference_steps={num_inference_steps}: must"
        whole = f"num_train_timesteps={scheduler.num_train_timesteps}"
        if _is_kind(scheduler, "DDPMScheduler") and num_inference_steps != scheduler.num_train_timesteps:
            raise SettingError(f"{steps} be {whole} with DDPMScheduler, each of whose steps goes from t to t - 1.")
        if _is_kind(scheduler, "DDIMScheduler") and scheduler.num_train_timesteps % num_inference_steps:
            raise SettingError(f"{steps} divide {whole} with DDIMScheduler, whose steps are all of one length.")
        scheduler.set_timesteps(num_inference_steps)  # type: ignore[operator]  # every scheduler of MONAI's has it
        # In a tuple, for MONAI's RFlowScheduler can't be an attribute of a module (it never calls super().__init__).
        self._scheduler = (scheduler,)
        self._make_inferer = inferer
        self.check_guidance(guidance)
        self.requires_grad_(False)  # what is generated, or exported, carries no graph

    def example_input(self) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return noise for one volume, and what it is asked for if it can be, to trace with."""
        size = 2 ** max(1, len(self.diffusion_model.block_out_channels) - 1)  # each level but one halves it
        shape = (1, self.diffusion_model.in_channels, size, size, size)
        noise = torch.zeros(shape, device=self.scale_factor.device)
        return noise if self.tokens is None else {"noise": noise, "condition": self.tokens.free(1)}

    def check_guidance(self, guidance: float) -> None:
        """Raise ``SettingError`` where there is guidance, and nothing can be asked for or the inferer knows none."""
        if guidance != 1 and self.tokens is None:
            raise SettingError(f"guidance={guidance}: must be 1, for these networks know no conditions.")
        if guidance != 1 and "cfg" not in inspect.signature(self._make_inferer(self.scheduler).sample).parameters:
            raise SettingError(f"guidance={guidance}: must be 1 with monai-generative, whose inferer has none.")

    def check_weights(self, weights: Mapping[str, torch.Tensor], where: str) -> None:
        """Refuse weights that know other conditions; ``where`` begins the message of the ``SettingError``."""
        here = self.tokens.names if self.tokens is not None else ()
        there = read_names(weights)
        if there == here:
            return
        if not there:
            must = "must be weights of a training with configs/conditional.json"
            raise SettingError(f"{where}: knows no conditions, and conditions={list(here)}: {must}.")
        must = f"must be {list(there)}, with configs/conditional.json merged over this config"
        raise SettingError(f"conditions={list(here)}: {must}, for the weights of {where}.")

    @property
    def scheduler(self) -> Scheduler:
        """The sampler."""
        return self._scheduler[0]

    @torch.no_grad()
    def forward(
        self, noise: torch.Tensor, texture: torch.Tensor | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Generate volumes.

        Args:
            noise: standard normal latents, shape (B, C, d, h, w).
            texture: standard normal noise of the voxels, shape (B, 1, D, H, W); ``None`` draws it.
            condition: what is asked for, shape (B, K), in the order of the tokens' names, NaN where a value is free;
                ``None`` asks for nothing.

        Returns:
            Volumes, shape (B, 1, D, H, W), float32, background exactly 0.
        """
        # MONAI's annotations name its own networks and floats; what it uses of them is what these have.
        inferer = self._make_inferer(self.scheduler, scale_factor=self.scale_factor)
        asked: dict[str, Any] = {}
        if self.tokens is not None:
            if condition is None:
                condition = self.tokens.free(len(noise)).to(noise)
            asked["conditioning"] = self.tokens(condition)
            if self.guidance != 1:
                asked |= {"cfg": self.guidance, "cfg_fill_value": self.tokens.FREE}
        with autocast(noise, self.autoencoder.dtype):
            channels: torch.Tensor = inferer.sample(
                noise,
                self.autoencoder,  # type: ignore[arg-type]
                self.diffusion_model,
                verbose=False,
                **asked,
            )  # type: ignore[assignment]
        voxels = ZeroInflatedNormal.from_channels(channels)
        if texture is None:
            texture = torch.randn_like(voxels.loc)
        return voxels.draw(texture)


def _is_kind(scheduler: Scheduler, name: str) -> bool:
    """Tell a scheduler by its name, for monai-generative has the same ones as MONAI."""
    return any(kind.__name__ == name for kind in type(scheduler).__mro__)


def _check_training(generator: VolumeGenerator, weights: Mapping[str, torch.Tensor], prefix: str, *_: object) -> None:
    """Refuse weights of another process before they are loaded."""
    kinds = {0: "a diffusion", 1: "rectified flow"}
    for name, key, told in (("rectified_flow", "sampler", kinds), ("num_train_timesteps", "num_train_timesteps", {})):
        there, here = weights.get(prefix + name), getattr(generator, name)
        if there is not None and int(there) != int(here):
            was, is_now = (told.get(int(value), int(value)) for value in (there, here))
            raise SettingError(f"{key}={is_now}: must be {was}, as in the training of the weights of model_path.")


class FixedBatchInferer(Inferer):
    """Runs a network on batches of one fixed size, whatever the size of the batch that it is given.

    Convolutions and matrix products of another batch size add up in another order, and a generated volume would depend
    in its last digits on how many were asked for with it. The last batch is filled up with copies of its first item.

    Args:
        batch_size: how many items the network is given at a time.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: nn.Module, *others: torch.Tensor
    ) -> torch.Tensor:
        """Run ``network(inputs, *others)``, all of them of shape (B, ...); returns its output, shape (B, ...)."""
        outputs = []
        for start in range(0, len(inputs), self.batch_size):
            batch = [tensor[start : start + self.batch_size] for tensor in (inputs, *others)]
            count = len(batch[0])
            filled = [torch.cat([x, x[:1].expand(self.batch_size - count, *x.shape[1:])]) for x in batch]
            outputs.append(network(*filled)[:count])
        return torch.cat(outputs)
