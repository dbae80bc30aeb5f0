"""Generated volumes as files: NIfTI, a table of what was measured in each, and a preview."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Workflow
from monai.transforms import SaveImage
from monai.utils import CommonKeys
from torch.utils.data import Dataset, Subset

from ..atomic import clear_partial, replacing
from ..checks import SettingError
from ..record import RunRecord
from .measurement import measure_spheres, measure_values
from .slices import describe_volume, plot_volumes

logger = logging.getLogger(__name__)

TABLE, RECORD = "samples.csv", "samples.json"
# What a run writes beside its volumes: moved away with them, where a user's own files stay.
BESIDE = (TABLE, RECORD, "preview.png", "report.html", "run.json")


def _round(value: float) -> float:
    # six digits are more than a measurement of a volume is worth
    return float(f"{value:.6g}")


class SampleFolder:
    """A folder of generated volumes: volume ``i`` is ``sphere_0000i.nii.gz`` (float32), whole or not there at all.

    ``samples.json`` says of which run the volumes are. What the folder holds of another run goes into a folder
    ``earlier_1``, ``earlier_2``, ... in it; what it holds of this one is not generated again.

    Args:
        path: the folder; it is made.
        count: how many volumes it is to hold.
        record: settings of the run.
        spheres: whether the volumes are spheres; others are called ``volume_0000i.nii.gz``.
    """

    def __init__(self, path: str | os.PathLike, count: int, record: RunRecord, spheres: bool = True) -> None:
        self.path = Path(path)
        self.prefix = "sphere" if spheres else "volume"
        self.count = count
        self.record = record.values

    def open(self) -> SampleFolder:
        """Make the folder ready for the run."""
        self.path.mkdir(parents=True, exist_ok=True)
        clear_partial(self.path)
        volumes = sorted(path for kind in ("sphere", "volume") for path in self.path.glob(f"{kind}_?????*.nii.gz"))
        there = self._read_record()
        if there == self.record:
            asked_for = {self.file(i) for i in range(self.count)}
            earlier = [path for path in volumes if path not in asked_for]
        else:
            earlier = [*volumes, *(path for path in map(self.path.joinpath, BESIDE) if path.is_file())]
        if earlier:
            numbers = (path.name.removeprefix("earlier_") for path in self.path.glob("earlier_*"))
            number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
            aside = self.path / f"earlier_{number}"
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
            logger.info("%d files of an earlier run are now in %s", len(earlier), aside)
        if there != self.record:
            with replacing(self.path / RECORD) as partial:
                partial.write_text(json.dumps(self.record, indent=2) + "\n")
        return self

    def file(self, index: int) -> Path:
        """Return the path of volume ``index``."""
        return self.path / f"{self.prefix}_{index:05d}.nii.gz"

    def missing(self, volumes: Dataset) -> Subset:
        """Return those items of a dataset whose volumes are still to be generated, of several processes its share.

        Args:
            volumes: items as ``LatentNoise``'s, one for each volume.

        Raises:
            SettingError: when it has others, or too few, as one that was put in its place may.
        """
        there = len(volumes)  # type: ignore[arg-type]
        if there < self.count:
            raise SettingError(f"num_samples={self.count}: must be at most {there}, the length of the dataset.")
        wanted = {str(CommonKeys.IMAGE), "texture", "index"}
        if not isinstance(volumes[0], Mapping) or wanted - volumes[0].keys():
            raise SettingError(f"dataset: its items must be dictionaries with {', '.join(sorted(wanted))}.")
        idist.one_rank_only(with_barrier=True)(self.open)()
        missing = [i for i in range(self.count) if not self.file(i).exists()]
        idist.barrier()  # before the first of them is there
        return Subset(volumes, missing[idist.get_rank() :: idist.get_world_size()])

    def _read_record(self) -> Mapping[str, str] | None:
        try:
            return json.loads((self.path / RECORD).read_text())
        except (OSError, ValueError):
            return None


class SampleWriter:
    """Writes the volumes that an evaluator generates, the parameters measured in each, and a preview.

    ``samples.csv`` has a row for each volume: ``file`` and what was measured in it. ``preview.png`` shows the slices of
    the first volumes. What a volume was asked for stands beside what was measured, with the difference of the two:
    measured less asked.

    Args:
        folder: where to write.
        preview_size: how many volumes to show.
        spacing: size of a voxel along each axis, in mm.
        conditions: names of the K values that volumes can be asked for.
        asked: what they are asked for, (N, K), NaN where a value is free; ``None`` for nothing.
    """

    def __init__(
        self,
        folder: SampleFolder,
        preview_size: int = 8,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        conditions: Sequence[str] = (),
        asked: torch.Tensor | None = None,
    ) -> None:
        self.folder = folder
        self.preview_size = preview_size
        self.affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
        self.measure = measure_spheres if folder.prefix == "sphere" else measure_values
        columns = () if asked is None else asked.T.tolist()
        named = zip(conditions, columns, strict=True) if columns else ()
        # those that no volume is asked for have no columns in the table
        self.asked = {name: values for name, values in named if not all(map(math.isnan, values))}
        self.rows: dict[int, dict[str, Any]] = {}
        self.save = SaveImage(
            output_dir=folder.path,
            output_postfix="",
            output_ext=".nii.gz",
            output_dtype="float32",
            resample=False,
            separate_folder=False,
            print_log=False,
        )

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator whose batches have an ``index`` and whose prediction is volumes."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Workflow) -> None:
        """Write a batch of volumes and measure them."""
        volumes = engine.state.output[CommonKeys.PRED].cpu()
        for index, volume in zip(engine.state.batch["index"].tolist(), volumes, strict=True):
            with replacing(self.folder.file(index)) as partial:
                meta = {"filename_or_obj": partial.name, "affine": self.affine, "space": "RAS"}
                self.save(volume, meta_data=meta)
            self._note(index, volume)

    def _note(self, index: int, volume: torch.Tensor) -> None:
        # one at a time, for in a batch a sum's last digit may depend on its neighbours
        measured = self.measure(volume[None])
        values = {name: _round(value.item()) for name, value in measured.items()}
        row: dict[str, Any] = {"file": self.folder.file(index).name}
        for name in {**values, **self.asked}:
            if name in values:
                row[name] = values[name]
            if name in self.asked:
                asked = self.asked[name][index]
                free = math.isnan(asked)
                row[f"{name}_asked"] = "" if free else _round(asked)
                if name in values:
                    row[f"{name}_difference"] = "" if free else _round(values[name] - asked)
        self.rows[index] = row

    def finish(self) -> None:
        """Write the table and the preview, of all volumes that the folder is to hold, once every process is done."""
        idist.barrier()
        if idist.get_rank() == 0:
            self._summarise()

    def _summarise(self) -> None:
        for index in range(self.folder.count):
            if index not in self.rows:  # of another process, or of a run that was stopped
                self._note(index, self._read(index))
        rows = [self.rows[index] for index in range(self.folder.count)]
        with replacing(self.folder.path / TABLE) as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        shown = rows[: self.preview_size]
        titles = ["\n".join([row["file"], describe_volume(row), *self._describe_request(row)]) for row in shown]
        items = [{"": self._read(index)} for index in range(len(shown))]
        plot_volumes(items, titles, self.folder.path / "preview.png", across=2)
        logger.info("%d volumes in %s", len(rows), self.folder.path)

    def _describe_request(self, row: Mapping[str, Any]) -> list[str]:
        asked = [f"{name} = {row[f'{name}_asked']:g}" for name in self.asked if row[f"{name}_asked"] != ""]
        return textwrap.wrap(f"asked: {', '.join(asked)}", 28) if asked else []

    def _read(self, index: int) -> torch.Tensor:
        image: Any = nibabel.load(self.folder.file(index))
        # laid out as a generated one: the last digit of a sum depends on the order of what is added
        return torch.from_numpy(np.ascontiguousarray(image.get_fdata(dtype=np.float32)))[None]
