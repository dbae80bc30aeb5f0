"""The classifier two-sample test: can a network learn to tell generated volumes from real ones?"""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.handlers import ProgressBar
from ignite.metrics import Accuracy
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, from_engine
from monai.networks.nets import Classifier
from monai.utils import CommonKeys, convert_to_tensor
from scipy import stats
from torch.utils.data import Dataset, Subset

from .lines import ERROR_RATE, Line

logger = logging.getLogger(__name__)

# Held-out accuracy that a faithful generator stays within.
ACCURACY = 0.55


class _Labelled(Dataset):
    """Volumes of two datasets with the label 0 for the first's and 1 for the second's."""

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self.items = [(dataset, i, label) for label, dataset in enumerate((first, second)) for i in range(len(dataset))]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        dataset, i, label = self.items[index]
        volume = convert_to_tensor(dataset[i][CommonKeys.IMAGE], dtype=torch.float32, track_meta=False).nan_to_num()
        # as in the autoencoder: normalisation would hide a volume's scale from a network that sees the values alone
        channels = torch.cat([volume, volume.abs(), (volume != 0).float()])
        return {CommonKeys.IMAGE: channels, CommonKeys.LABEL: label}


def classify_two_samples(
    volumes: Dataset,
    real: Dataset,
    epochs: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> dict[str, Line]:
    """Train a small 3D network to tell two sets of volumes apart, and score it on volumes it has not seen.

    Lopez-Paz and Oquab (2017), "Revisiting Classifier Two-Sample Tests", ICLR. Half of each set trains MONAI's
    ``Classifier``, the other half tests it. An accuracy of 0.5 is what indistinguishable sets give.

    Args:
        volumes: items with volumes (1, D, H, W) under ``CommonKeys.IMAGE``.
        real: real ones, alike, and as many.
        epochs: passes over the training half.
        seed: of the halves, the weights and the order.
        device: where to train.
        num_workers: processes that make batches.

    Returns:
        ``{"classifier": line}`` with the held-out accuracy as ``value``, its exact (Clopper-Pearson) 95% interval as
        ``low`` and ``high``, and ``count``, the volumes it rests on. Empty for fewer than four volumes in a set.
    """
    size = min(len(volumes), len(real))  # type: ignore[arg-type]
    if size < 4:
        logger.warning("classifier: not trained, for a set has %d volumes; 4 are the least", size)
        return {}
    # fork_rng: the test must not change what a caller draws afterwards
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # before the network: a loader of MONAI's sets the random numbers back to where they began
        train, test = (
            DataLoader(half, num_workers, batch_size=16, shuffle=shuffle)
            for half, shuffle in zip(_split(volumes, real, size), (True, False), strict=True)
        )
        network = Classifier(
            in_shape=train.dataset[0][CommonKeys.IMAGE].shape,
            classes=2,
            channels=(8, 16, 32, 64),
            strides=(2, 2, 2, 2),
            num_res_units=0,
            norm="batch",
            act="relu",
        ).to(device)
        _fit(network, train, epochs, device)
        accuracy = _test(network, test, device)
    count = len(test.dataset)  # type: ignore[arg-type]
    interval = stats.binomtest(round(accuracy * count), count).proportion_ci()
    # no more than a fair coin could reach by chance in so few tosses
    limit = max(ACCURACY, float(stats.binom.isf(ERROR_RATE, count, 0.5)) / count)
    line = Line(accuracy, low=float(interval.low), high=float(interval.high), count=count, limit=limit)
    return {"classifier": line}


def _split(volumes: Dataset, real: Dataset, size: int) -> list[_Labelled]:
    """Deal ``size`` of each set into two halves, to train from and to test on."""
    orders = [torch.randperm(size).tolist() for _ in range(2)]
    return [
        _Labelled(Subset(volumes, orders[0][half]), Subset(real, orders[1][half]))
        for half in (slice(None, size // 2), slice(size // 2, None))
    ]


def _fit(network: torch.nn.Module, data: DataLoader, epochs: int, device: torch.device | str) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(data))
    SupervisedTrainer(
        device=torch.device(device),
        max_epochs=epochs,
        train_data_loader=data,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.CrossEntropyLoss(),
        train_handlers=[
            LrScheduleHandler(schedule, epoch_level=False, print_lr=False),  # type: ignore[arg-type]
            ProgressBar(desc="classifier"),
        ],
        decollate=False,
    ).run()


def _test(network: torch.nn.Module, data: DataLoader, device: torch.device | str) -> float:
    """Return the share of a labelled set that the network tells right."""
    evaluator = SupervisedEvaluator(
        device=torch.device(device),
        val_data_loader=data,
        network=network,
        key_val_metric={"accuracy": Accuracy(output_transform=from_engine([CommonKeys.PRED, CommonKeys.LABEL]))},
        decollate=False,
    )
    evaluator.run()
    return float(evaluator.state.metrics["accuracy"])
