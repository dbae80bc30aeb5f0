"""Generated volumes as files: NIfTI, a table of what was measured in each, and a preview."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Events
from monai.engines import Workflow
from monai.transforms import SaveImage
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from .measurement import measure_spheres, measure_values
from .slices import describe_volume, plot_volumes

logger = logging.getLogger(__name__)


class SampleWriter:
    """Writes the volumes that an evaluator generates, the parameters measured in each, and a preview.

    Volume ``i`` becomes ``sphere_0000i.nii.gz`` (float32), its row of ``samples.csv`` holds ``file`` and what was
    measured in it, and ``preview.png`` shows the slices of the first volumes.

    Args:
        output_dir: the folder to write to; it is made.
        preview_size: how many volumes to show.
        spacing: size of a voxel along each axis, in mm.
        spheres: whether the volumes are spheres, to be measured by ``measure_spheres``; others are called
            ``volume_0000i.nii.gz``, and the table holds ``voxels`` (how many are not 0) and their ``mean`` and ``std``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        preview_size: int = 8,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        spheres: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.preview_size = preview_size
        self.prefix = "sphere" if spheres else "volume"
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
        logger.info("%d volumes in %s", len(self.rows), self.output_dir)


class VolumeStore(Dataset[dict[str, torch.Tensor]]):
    """Keeps the volumes that an evaluator generates: a handler to attach, and then a dataset of them.

    Item ``i`` is ``{CommonKeys.IMAGE: (1, D, H, W) float32}``, on the CPU.
    """

    def __init__(self) -> None:
        self.volumes: list[torch.Tensor] = []

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator whose prediction is volumes."""
        engine.add_event_handler(Events.STARTED, self.volumes.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

    def keep(self, engine: Workflow) -> None:
        """Keep a batch."""
        self.volumes.extend(engine.state.output[CommonKeys.PRED].cpu())

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {CommonKeys.IMAGE: self.volumes[index]}
