"""What a validation shows in TensorBoard: its metrics, and slices of real, reconstructed and generated volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, Workflow
from monai.handlers import TensorBoardStatsHandler
from monai.utils import CommonKeys
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from ..evaluation.slices import slices_image
from ..model.generator import VolumeGenerator
from .curves import write_epoch


class ValidationCurves:
    """Shows each validation in TensorBoard: its metrics, and three orthogonal slices of volumes.

    Args:
        writer: where to write.
        preview: returns the volumes (B, 1, D, H, W) to show, by name, the first of which are shown; ``None`` shows
            those of the first batch's output.
        count: how many of each to show.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        preview: Callable[[], Mapping[str, torch.Tensor]] | None = None,
        count: int = 2,
    ) -> None:
        self.writer = writer
        self.preview = preview
        self.count = count

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Register with an evaluator."""
        TensorBoardStatsHandler(
            summary_writer=self.writer,
            iteration_log=False,
            epoch_event_writer=lambda engine, writer: write_epoch(engine, writer, "validation"),
        ).attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda _, iteration: iteration == 1), self)

    @torch.no_grad()
    def __call__(self, engine: Workflow) -> None:
        """Write the slices, at the engine's epoch."""
        output = engine.state.output
        names = {"input": CommonKeys.IMAGE, "reconstruction": "reconstruction", "sample": "sample"}
        shown = self.preview() if self.preview else {name: output[key] for name, key in names.items()}
        for name, volumes in shown.items():
            images = [slices_image(volume) for volume in volumes[: self.count]]
            self.writer.add_image(f"slices/{name}", torch.cat(images, dim=1), engine.state.epoch)


class GenerationPreview:
    """Volumes that show how far a diffusion model is: real ones, their reconstructions, and generated ones.

    Args:
        volumes: real ones, (1, D, H, W) under ``CommonKeys.IMAGE``; the first two are shown.
        generator: makes the others, always from the same latent noise.
        latent_shape: channels and size of the latents.
        seed: of the noise.
    """

    def __init__(self, volumes: Dataset, generator: VolumeGenerator, latent_shape: Sequence[int], seed: int) -> None:
        device = next(generator.parameters()).device
        count = min(2, len(volumes))  # type: ignore[arg-type]
        self.volumes = torch.stack([volumes[i][CommonKeys.IMAGE] for i in range(count)]).to(device)
        self.noise = torch.randn([2, *latent_shape], generator=torch.Generator().manual_seed(seed)).to(device)
        self.generator = generator

    def __call__(self) -> dict[str, torch.Tensor]:
        """Return the volumes by name, each (B, 1, D, H, W) with two volumes, or as many real ones as there are."""
        return {
            "input": self.volumes,
            "reconstruction": self.generator.autoencoder.denoise(self.volumes),
            "sample": self.generator(self.noise),
        }
