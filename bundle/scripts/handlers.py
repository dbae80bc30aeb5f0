"""Ignite handlers that neither MONAI nor ignite has."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler, TerminateOnNan
from monai.engines import AdversarialTrainer, SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents
from monai.transforms import SaveImage
from monai.utils import CommonKeys
from monai.utils.enums import AdversarialIterationEvents

from .figures import describe_volume, plot_volumes
from .measurement import measure_spheres, measure_values


class GradientClipper:
    """Clips the gradient's norm before each optimizer step, and skips a step whose gradient is not finite.

    A single non-finite gradient, which bf16 kernels return now and then, would turn every weight into NaN. The number
    of skipped steps is ``engine.state.skipped_steps``, the last norm ``engine.state.gradient_norm``. Of an
    ``AdversarialTrainer`` it takes the generator's.

    Args:
        max_norm: largest norm of the gradient over all parameters.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def attach(self, engine: SupervisedTrainer | AdversarialTrainer) -> None:
        """Register with a trainer."""
        engine.state.skipped_steps = 0
        engine.state.gradient_norm = 0.0
        adversarial = isinstance(engine, AdversarialTrainer)
        event = (
            AdversarialIterationEvents.GENERATOR_BACKWARD_COMPLETED
            if adversarial
            else IterationEvents.BACKWARD_COMPLETED
        )
        engine.add_event_handler(event, self)

    def __call__(self, engine: SupervisedTrainer | AdversarialTrainer) -> None:
        """Clip, or drop, the gradients of the trainer's optimizer."""
        if isinstance(engine, AdversarialTrainer):
            optimizer, scaler = engine.state.g_optimizer, engine.state.g_scaler
        else:
            optimizer, scaler = engine.optimizer, engine.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        engine.state.gradient_norm = float(norm)
        if not torch.isfinite(norm):
            engine.state.skipped_steps += 1
            if scaler is None:  # a gradient scaler skips the step itself, and lowers its scale
                optimizer.zero_grad(set_to_none=True)


class StopOnNaN(TerminateOnNan):
    """Ends a training whose loss is not finite with an error; its checkpoints stay as they are.

    ignite's handler alone would end the run as if it were complete, and what follows would save the weights as final.

    Args:
        ckpt_dir: where the training's checkpoints are, for the message.
        key: of the loss in the trainer's output.
    """

    def __init__(self, ckpt_dir: str, key: str = CommonKeys.LOSS) -> None:
        super().__init__(output_transform=lambda output: output[key])
        self.ckpt_dir = ckpt_dir
        self.key = key

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.TERMINATE, self.fail)

    def fail(self, engine: Workflow) -> None:
        """Raise ``FloatingPointError``, unless somebody else ended the training, as a federation does."""
        loss = float(engine.state.output[self.key])
        if math.isfinite(loss):
            return
        raise FloatingPointError(
            f"the loss is {loss} in epoch {engine.state.epoch}, iteration "
            f"{engine.state.iteration}: training stopped. The last good checkpoint is in {self.ckpt_dir}; resume from "
            "it with a lower lr, or with precision float32."
        )


class EpochSeed:
    """Seeds torch's random numbers at the start of each epoch by seed and epoch.

    The order of the data, the draws of latents, noise and timesteps of an epoch then don't depend on the epochs before
    it, and a resumed training continues as an uninterrupted one would have.

    Args:
        seed: a non-negative integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Seed the epoch that starts."""
        torch.manual_seed(self.seed * 1_000_003 + engine.state.epoch)


class WeightAverage(EMAHandler):
    """ignite's moving average of the weights, from those that a training starts with.

    ignite's own starts from the weights at its making; a federated client is handed the server's after that.
    """

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Register with a trainer; a checkpoint that is loaded at the start has to be attached later."""
        super().attach(engine, *args, **kwargs)
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Take over the weights of a training that begins, not of one that goes on."""
        if engine.state.iteration == 0:
            self.ema_model.load_state_dict(self.model.state_dict())


class ReconstructionPicture:
    """Draws the first volumes of an evaluation: image, noise-free signal if known, reconstruction, and a draw.

    Args:
        path: the PNG to write.
        count: how many volumes to show, at most a batch.
    """

    def __init__(self, path: str | os.PathLike, count: int = 4) -> None:
        self.path = path
        self.count = count

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator whose output is that of ``ReconstructionScores``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, iteration: iteration == 1), self)

    def __call__(self, engine: Workflow) -> None:
        """Draw the first batch."""
        output = engine.state.output
        names = {"image": "image", "oracle": "signal", "reconstruction": "reconstruction", "sample": "draw"}
        rows = [
            {shown: output[name][i] for name, shown in names.items() if name in output}
            for i in range(min(self.count, len(output["image"])))
        ]
        kinds = {"true_parameters": "true a = {:+.2f}, b = {:.2f}", "parameters": "decoded {:+.2f}, {:.2f}"}
        lines = [[text.format(*row) for row in output[kind].tolist()] for kind, text in kinds.items() if kind in output]
        titles = ["\n".join(line) for line in zip(*lines, strict=True)]
        plot_volumes(rows, titles[: len(rows)], self.path)


class SampleWriter:
    """Writes the volumes that an evaluator generates, the parameters measured in each, and a preview.

    Volume ``i`` becomes ``sphere_0000i.nii.gz`` (float32), its row of ``samples.csv`` holds ``file`` and what was
    measured in it, and ``preview.png`` shows the slices of the first volumes.

    Args:
        output_dir: the folder to write to; it is made.
        preview_size: how many volumes to show.
        prefix: what the files' names begin with.
        spacing: size of a voxel along each axis, in mm.
        spheres: whether the volumes are spheres, to be measured by ``measure_spheres``; of others the table holds
            ``voxels`` (how many are not 0) and their ``mean`` and ``std``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        preview_size: int = 8,
        prefix: str = "sphere",
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        spheres: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.preview_size = preview_size
        self.prefix = prefix
        self.affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
        self.measure = measure_spheres if spheres else measure_values
        self.rows: list[dict[str, str | float]] = []
        self.preview: list[torch.Tensor] = []
        self.save = SaveImage(
            output_dir=output_dir,
            output_postfix="",
            output_ext=".nii.gz",
            output_dtype="float32",
            resample=False,
            separate_folder=False,
            print_log=False,
        )

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator whose batches have an ``index`` and whose prediction is volumes."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Workflow) -> None:
        """Forget an earlier run's volumes."""
        self.rows.clear()
        self.preview.clear()

    def write(self, engine: Workflow) -> None:
        """Write a batch of volumes and measure them."""
        volumes = engine.state.output[CommonKeys.PRED].cpu()
        measured = self.measure(volumes)
        for k, (index, volume) in enumerate(zip(engine.state.batch["index"].tolist(), volumes, strict=True)):
            name = f"{self.prefix}_{index:05d}.nii.gz"
            self.save(volume, meta_data={"filename_or_obj": name, "affine": self.affine, "space": "RAS"})
            # six digits are more than a measurement of a volume is worth
            self.rows.append({"file": name, **{key: float(f"{values[k]:.6g}") for key, values in measured.items()}})
        self.preview.extend(volumes[: self.preview_size - len(self.preview)])

    def finish(self, engine: Workflow) -> None:
        """Write the table and the preview."""
        with (self.output_dir / "samples.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            table.writeheader()
            table.writerows(self.rows)
        titles = [f"{row['file']}\n{describe_volume(row)}" for row in self.rows[: len(self.preview)]]  # type: ignore
        plot_volumes([{"": volume} for volume in self.preview], titles, self.output_dir / "preview.png", across=2)
