"""How well a model obeys, as tables, on the screen, in the report and in the documents, and as JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..atomic import replacing
from ..data.spheres import PARAMETERS
from .control import Case, Control

logger = logging.getLogger(__name__)

Rows = list[dict[str, str]]


def _list_cases(found: Mapping[str, Any]) -> list[tuple[str, Case]]:
    cases = [Case.from_dict(case) for case in found["cases"]]
    return [*((case.label, case) for case in cases), ("real spheres", Case.from_dict(found["real"]))]


def tabulate(found: Mapping[str, Any]) -> Rows:
    """Put what ``write_control`` wrote into rows, a row a case: errors of what was asked, the law of what was free."""
    rows = []
    for label, case in _list_cases(found):
        lines = case.lines
        law = PARAMETERS if label == "real spheres" else case.free
        largest = max((f"ks_{name}" for name in law if f"ks_{name}" in lines), key=lambda n: lines[n].value, default="")
        row = {"asked": label, "guidance": f"{case.guidance:g}", "valid": f"{lines['valid'].value:.4f}"}
        for name in PARAMETERS:
            row[f"RMSE of {name}"] = f"{lines[f'rmse_{name}'].value:.4f}" if f"rmse_{name}" in lines else ""
        row["largest KS, free"] = f"{largest} {lines[largest].value:.4f} {lines[largest].bound}" if largest else ""
        rows.append({**row, "beyond their limit": ", ".join(case.failed)})
    return rows


def tabulate_errors(found: Mapping[str, Any]) -> Rows:
    """Put the errors into rows, a row a case that asks for something: mean, its standard error, what 95% are within."""
    rows = []
    for label, case in _list_cases(found):
        row = {"measured less asked": label, "guidance": f"{case.guidance:g}"}
        for name in PARAMETERS:
            row[name] = ""
            if f"bias_{name}" in case.lines:
                bias, quantile = case.lines[f"bias_{name}"], case.lines[f"quantile_{name}"]
                row[name] = f"{bias.value:.3f} ± {bias.standard_error:.3f}; {quantile.value:.3f}"
        rows += [row] if case.asked else []
    return rows


def _align(rows: Rows) -> str:
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]]
    cells: list[Sequence[str]] = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def write_control(path: str | os.PathLike, control: Control, settings: Mapping[str, Any]) -> None:
    """Write what was found as JSON (``settings``, ``real`` and ``cases``, as ``Case.as_dict``) and log it as tables.

    Args:
        path: the file to write; its folder is made.
        control: as ``evaluate_control`` returns it.
        settings: what the evaluation was run with.
    """
    cases = [case.as_dict() for case in control.cases]
    found = {"settings": dict(settings), "real": control.real.as_dict(), "cases": cases}
    with replacing(path) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")
    logger.info("control\n%s\n\n%s\nsaved to %s", _align(tabulate(found)), _align(tabulate_errors(found)), path)
