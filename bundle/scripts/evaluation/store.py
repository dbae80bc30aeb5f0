"""Where generated volumes stay while they are scored."""

from __future__ import annotations

import os
import tempfile
from multiprocessing import reduction
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Workflow
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from ..distributed import gather_shares


class VolumeStore(Dataset[dict[str, torch.Tensor]]):
    """Keeps the volumes that an evaluator generates: a handler to attach, and then a dataset of them.

    Item ``i`` is ``{CommonKeys.IMAGE: (1, D, H, W) float32}``. They lie in a file without a name, which goes with the
    process, so that memory does not grow with their number; of each volume it holds which voxels are not 0, and their
    values. Of several processes, whose batches have to be of one size, the first keeps those of all.

    Args:
        count: how many volumes to keep; what comes after them fills up the last batches.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.shape: tuple[int, ...] = ()
        self.places: list[tuple[int, int]] = []  # where a volume begins in the file, and how many values it has

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator whose prediction is volumes."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

    def start(self) -> None:
        """Forget an earlier run's volumes."""
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the dataset is used
        self.places.clear()

    def keep(self, engine: Workflow) -> None:
        """Keep the batch that an evaluator generated."""
        self.add(gather_shares(engine.state.output[CommonKeys.PRED]))

    def add(self, volumes: torch.Tensor) -> None:
        """Keep volumes, (B, 1, D, H, W), of all processes."""
        volumes = volumes[: self.count - len(self.places)]
        for volume in volumes.cpu().numpy() if idist.get_rank() == 0 else ():
            values = volume[volume != 0]
            self.shape = volume.shape
            self.places.append((self.file.tell(), len(values)))
            self.file.write(np.packbits(volume != 0).tobytes() + values.tobytes())
        self.file.flush()

    def __getstate__(self) -> dict[str, Any]:
        # a worker process that is no fork (macOS) is handed the open file, which has no name to open it by
        return {**vars(self), "file": reduction.DupFd(self.file.fileno())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, file=os.fdopen(state["file"].detach(), "rb"))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, count = self.places[index]
        size = int(np.prod(self.shape))
        # pread: worker processes share the file's position
        content = os.pread(self.file.fileno(), -(-size // 8) + 4 * count, start)
        support = np.unpackbits(np.frombuffer(content, np.uint8, -(-size // 8)), count=size).astype(bool)
        volume = np.zeros(size, np.float32)
        volume[support] = np.frombuffer(content, np.float32, count, -(-size // 8))
        return {CommonKeys.IMAGE: torch.from_numpy(volume.reshape(self.shape))}
