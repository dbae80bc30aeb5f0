"""What volumes are asked for: by one request for all, or by a table with a row for each."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import SettingError, is_number, suggest

logger = logging.getLogger(__name__)

FORMS = 'must be a CSV file with names in its first line, or a JSON list, as [{"r": 20, "a": null}, ...]'


def read_requests(
    names: Sequence[str],
    ranges: torch.Tensor | None,
    count: int,
    ask: Mapping[str, float] | None = None,
    requests: str | os.PathLike = "",
    size: int | None = None,
) -> torch.Tensor | None:
    """Read what volumes are asked for.

    Args:
        names: the K conditions that the model knows; none for a model without.
        ranges: least and greatest value of each, (K, 2).
        count: number of volumes.
        ask: one request for all of them: values by name; what is not named is free.
        requests: a table instead, CSV or JSON: a row for each volume; empty cells are free.
        size: of the grid that the ball has to lie in, in voxels; ``None`` where the volumes are no spheres.

    Returns:
        Shape (count, K), NaN where a value is free; ``None`` for a model without conditions.

    Raises:
        SettingError: when the model has no such condition, a value is no number or outside its range, a ball would
            leave the grid, or a table can't be read or has too few rows.
    """
    requests = os.fspath(requests)
    given = {key: value for key, value in (("ask", ask), ("requests", requests)) if value}
    if not names:
        for key, value in given.items():
            need = "configs/conditional.json, merged over this config, has networks that know some"
            raise SettingError(f"{key}={value!r}: must be empty, for these networks know no conditions; {need}.")
        return None
    if len(given) == 2:
        raise SettingError(f"ask={ask!r}: must be empty where requests={requests!r} says what is asked.")
    if requests:
        rows = _read_table(requests)
        if len(rows) < count:
            raise SettingError(f"num_samples={count}: must be at most {len(rows)}, the rows of requests={requests!r}.")
        logger.info("%d of the %d rows of %s", count, len(rows), requests)
    else:
        rows = [dict(ask or {})]
    assert ranges is not None
    bounds = dict(zip(names, ranges.tolist(), strict=True))
    for i, row in enumerate(rows, start=1):
        _check(row, bounds, size, f"requests={requests!r}, row {i}: " if requests else "ask#")
    table = torch.tensor([[row.get(name, math.nan) for name in names] for row in rows[:count]])
    return table if requests else table.expand(count, -1)


def _read_table(path: str) -> list[dict[str, Any]]:
    """Read the rows of a table, without their empty cells; what is no number stays as it is."""
    where = f"requests={path!r}"
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = json.load(file) if path.endswith(".json") else _read_csv(file)
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("it is no list of rows")
        if not rows:
            raise ValueError("it has no rows")
    except (OSError, ValueError, csv.Error) as error:
        raise SettingError(f"{where}: can't be read ({error}); {FORMS}.") from None
    if "" in {name for row in rows for name in row}:
        raise SettingError(f"{where}: has cells without a name in the first line; {FORMS}.")
    return [{name: _to_number(cell) for name, cell in row.items() if cell not in (None, "")} for row in rows]


def _read_csv(file: Iterable[str]) -> list[dict[str, Any]]:
    # csv.DictReader leaves out blank lines, and such a line is a free row of a table of one column
    header, *lines = [*csv.reader(file)] or [[]]
    return [dict(itertools.zip_longest(header, line, fillvalue="")) for line in lines]


def _to_number(cell: Any) -> Any:
    try:
        return float(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell


def _check(row: Mapping[str, Any], bounds: Mapping[str, Sequence[float]], size: int | None, where: str) -> None:
    for name, value in row.items():
        said = f"{where}{name}={value!r}"
        if name not in bounds:
            known = f"the model knows {', '.join(bounds)}"
            raise SettingError(f"{said}: no such condition, {known}{suggest(name, bounds)}")
        if not is_number(value):
            raise SettingError(f"{said}: must be a number.")
        low, high = bounds[name]
        if not low <= value <= high:
            raise SettingError(f"{said}: must be from {low:g} to {high:g}, the range that the model was trained on.")
    r = row.get("r")
    for name in ("cx", "cy", "cz"):
        if size is not None and r is not None and name in row and not r <= row[name] <= size - r:
            raise SettingError(
                f"{where}{name}={row[name]!r}: must be from {r:g} to {size - r:g}, for a ball of r={r:g} lies wholly "
                f"inside the grid of {size} voxels."
            )
