"""The sampler: rectified flow by a rule of second order, one network call a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.schedulers import RFlowScheduler

from ..checks import SettingError, is_number


class AdamsBashforthScheduler(RFlowScheduler):
    """MONAI's ``RFlowScheduler`` with the two-step Adams-Bashforth rule in place of Euler's, and a corrector.

    Euler's rule follows the velocity v at the start of a step. This one remembers the velocity v' of the step before as
    well, and follows the line through both: with h' the length of that step and h of this one,

        x <- x + h ((1 + w) v - w v'),  w = h / (2 h')

    (Hairer, Norsett and Wanner 1993, "Solving Ordinary Differential Equations I", III.1 and III.5, for steps of any
    length). v is also the velocity at the end of the step before. So each step first corrects that one by the
    trapezoidal rule,

        x <- x + h' ((v' + v) / 2 - u)

    where u is the velocity that the step before followed. v is not computed again, so the correction costs no call of
    the network, as in Zhao et al. (2023), "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
    Diffusion Models". The error falls with the square of the step. A trajectory's first step is Euler's until it is
    corrected; the last one is not corrected.

    Args:
        shift: how dense the steps are at the noisy end: even times t of [0, 1] become s t / (1 + (s - 1) t), as in
            Esser et al. (2024), "Scaling Rectified Flow Transformers", equation 23; 1 leaves them even.
        corrector: whether steps are corrected. Strong guidance makes the velocity change fast, and corrected steps
            become unstable before plain ones do.
        args: as ``RFlowScheduler``'s.
        kwargs: as ``RFlowScheduler``'s; ``shift`` takes the place of its transform of the timesteps.

    Raises:
        SettingError: when ``shift`` is no number above 0, or ``corrector`` neither true nor false; by
            ``set_timesteps``, when two steps fall on one timestep.
    """

    def __init__(self, *args: Any, shift: float = 1.0, corrector: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_number(shift) or shift <= 0:
            raise SettingError(f"sampler#shift={shift!r}: must be a number above 0.")
        if not isinstance(corrector, bool):
            raise SettingError(f"sampler#corrector={corrector!r}: must be true or false.")
        self.shift = shift
        self.corrector = corrector
        # of the step before: the velocity at its start, the one it followed, its length, the timestep that it ended at
        self._last: tuple[torch.Tensor, torch.Tensor, float, float] | None = None

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        input_img_size_numel: int | None = None,
    ) -> None:
        """Set the times of the steps, from pure noise on; forgets a trajectory that was under way."""
        super().set_timesteps(num_inference_steps, device, input_img_size_numel)
        # anew: MONAI's go through float16, which has too few digits
        even = 1 - torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        times = self.shift * even / (1 + (self.shift - 1) * even) * self.num_train_timesteps
        times = times.round().long() if self.use_discrete_timesteps else times.float()
        if len({*times.tolist(), 0}) <= num_inference_steps:
            raise SettingError(
                f"sampler#shift={self.shift}: two of num_inference_steps={num_inference_steps} fall on one whole "
                "timestep; must be nearer to 1, or sampler#use_discrete_timesteps false."
            )
        self.timesteps = times.to(device)
        self._last = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        next_timestep: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step.

        Args:
            model_output: the velocity at ``sample``, shape (B, C, d, h, w).
            timestep: time of ``sample``. One that is not the end of the step before starts a trajectory.
            sample: the noisy latents, of the velocity's shape. A caller may have changed them since the step before,
                as for inpainting; the trajectory goes on from them.
            next_timestep: time to go to; ``None`` goes on by an even step.

        Returns:
            The latents at ``next_timestep``, and what velocity and corrected latents say of the clean ones.
        """
        time = float(timestep)
        even = self.num_train_timesteps / len(self.timesteps)
        following = time - even if next_timestep is None else float(next_timestep)
        length = (time - following) / self.num_train_timesteps
        # a network's shorter type has too few digits for sums
        model_output = model_output.to(torch.promote_types(model_output.dtype, sample.dtype))
        velocity = model_output
        if self._last is not None and math.isclose(time, self._last[-1], rel_tol=1e-5):
            earlier, followed, earlier_length, _ = self._last
            if self.corrector:
                sample = sample + earlier_length * ((earlier + model_output) / 2 - followed)
            weight = length / (2 * earlier_length)
            velocity = (1 + weight) * model_output - weight * earlier
        # nothing is kept of a trajectory that has come to its end
        self._last = (model_output, velocity, length, following) if following > 0 else None
        return sample + length * velocity, sample + model_output * (time / self.num_train_timesteps)
