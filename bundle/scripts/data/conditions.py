"""The numbers that a volume can be asked for: a sphere's parameters, or fields beside the images of a datalist."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from ..checks import SettingError, is_number, suggest
from ..model.tokens import CONDITION
from .spheres import PARAMETERS, SphereLaw


def _read_number(item: Mapping[str, Any], name: str) -> float:
    value = item.get(name)
    if value is None and name in ("cx", "cy", "cz") and isinstance(item.get("c"), torch.Tensor):
        return item["c"]["xyz".index(name[1])].item()
    if isinstance(value, torch.Tensor):
        return value.item()
    if value is not None and not is_number(value):
        where = f"dataset_dir: {item.get(CommonKeys.IMAGE)}"
        raise SettingError(f"{where}: {name}={value!r}: must be a number, or null or left out where it is not known.")
    return math.nan if value is None else float(value)


def read_condition(item: Mapping[str, Any], names: Sequence[str]) -> torch.Tensor:
    """Read the named numbers of an item: of ``SphereDataset``, or of a datalist.

    Returns:
        Shape (K,), float32; NaN for a number that is missing.

    Raises:
        SettingError: when one is something else than a number.
    """
    return torch.tensor([_read_number(item, name) for name in names])


def find_ranges(
    names: Sequence[str],
    law: SphereLaw,
    training: Sequence[Mapping[str, Any]] = (),
    held_out: Sequence[Mapping[str, Any]] = (),
) -> list[tuple[float, float]]:
    """Find the least and the greatest value of each condition.

    Args:
        names: the conditions.
        law: of the spheres: its bounds, where there are no scans.
        training: items of a datalist, over which the ranges are taken.
        held_out: others, whose numbers are read too, so that a wrong one shows before any work.

    Returns:
        K pairs.

    Raises:
        SettingError: when a name is no parameter of spheres or no field of the scans, or a field is no number.
    """
    for item in held_out:
        read_condition(item, names)
    ranges = []
    for name in names:
        values = [value for item in training if math.isfinite(value := _read_number(item, name))]
        if training and not values:
            fields = {key for item in training for key, value in item.items() if is_number(value)}
            raise SettingError(f"conditions: no volume to train from has the number {name!r}{suggest(name, fields)}")
        if not training and name not in PARAMETERS:
            allowed = f"must be of {', '.join(PARAMETERS)}{suggest(name, PARAMETERS)}"
            raise SettingError(f"conditions: {name!r} is no parameter of a sphere: {allowed}")
        ranges.append((min(values), max(values)) if training else law.bounds(name))
    return ranges


class ConditionedVolumes(Dataset):
    """The volumes of a dataset with the named numbers of each, and nothing else.

    Args:
        data: items with volumes (1, D, H, W) under ``CommonKeys.IMAGE``, and numbers.
        names: the K numbers; under ``CONDITION`` an item has them as ``read_condition`` returns them.
    """

    def __init__(self, data: Dataset, names: Sequence[str]) -> None:
        self.data = data
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        return {CommonKeys.IMAGE: item[CommonKeys.IMAGE], CONDITION: read_condition(item, self.names)}
