"""The page itself: what of a run's folder goes into it, and how it is written."""

from __future__ import annotations

import base64
import csv
import datetime
import gzip
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import nibabel
import numpy as np

from ..atomic import replacing
from ..checks import SettingError
from ..environment import describe
from ..evaluation.control_table import Rows, tabulate, tabulate_errors
from ..evaluation.lines import Line
from ..evaluation.table import LABELS
from .curves import plot_curves, read_events

logger = logging.getLogger(__name__)

# What of a folder goes into the page, so that it stays a few megabytes.
MOST_VOLUMES = 8
MOST_VOXELS_ALONG_AN_AXIS = 128
MOST_ROWS = 100

GROUPS = {"train": 0, "validation": 1}  # the curves that are shown first
CAPTIONS = {
    "preview": "Slices of the first volumes",
    "reconstructions": "Held-out volumes and their reconstructions",
    "fidelity": "The volumes beside what they should be",
    "control": "How well requests are obeyed, and whether the rest follows the law",
    "sweep": "One noise; in each row one value is moved through its range",
}


def _embed(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def pack_volume(path: Path) -> dict[str, Any]:
    """Put a NIfTI volume into a form that a page can hold and show.

    Args:
        path: the file, of a volume with three axes (and others of length 1).

    Returns:
        ``name``; ``shape`` and ``spacing`` along x, y and z (towards right, front and top, by the file's affine), of
        every second voxel or fewer where there are too many; ``low`` and ``high``, the values of the bytes 0 and 255;
        ``window``, the range that holds 98% of the values; ``data``, the bytes in C order, gzipped, in base64.

    Raises:
        ValueError: when the volume has not three axes.
    """
    image: Any = nibabel.as_closest_canonical(nibabel.load(path))
    array = np.nan_to_num(np.squeeze(image.get_fdata(dtype=np.float32)))
    if array.ndim != 3:
        raise ValueError(f"{path} has the shape {image.shape}: not a volume.")
    stride = -(-max(array.shape) // MOST_VOXELS_ALONG_AN_AXIS)
    array = array[::stride, ::stride, ::stride]
    # a few extreme voxels would cost all others their contrast
    low, start, end, high = (float(value) for value in np.percentile(array, [0.01, 1, 99, 99.99]))
    span = high - low or 1.0
    grey = np.round((array.clip(low, high) - low) * (255 / span)).astype(np.uint8)
    return {
        "name": path.name,
        "shape": list(array.shape),
        "spacing": [float(size) * stride for size in image.header.get_zooms()[:3]],
        "low": low,
        "high": low + span,
        "window": [start, end if end > start else start + span],
        "data": base64.b64encode(gzip.compress(grey.tobytes(), 6, mtime=0)).decode(),
    }


def _read_samples(folder: Path) -> list[dict[str, str]]:
    path = folder / "samples.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _pack_volumes(folder: Path, samples: list[dict[str, str]]) -> list[dict[str, Any]]:
    # the table tells this run's volumes from those that an earlier one left
    named = [folder / Path(row["file"]).name for row in samples if row.get("file")]
    files = named or sorted(folder.glob("[!.]*.nii*"))
    volumes = []
    for path in files[:MOST_VOLUMES]:
        try:
            volumes.append(pack_volume(path))
        except Exception as error:  # gzip, zlib and nibabel each have their own; the rest of the page is worth having
            logger.warning("%s is not in the report: %s", path, error)
    return volumes


def _read_fidelity(folder: Path) -> dict[str, Any] | None:
    path = folder / "fidelity.json"
    if not path.exists():
        return None
    fidelity = json.loads(path.read_text())
    fidelity["law"] = "valid" in fidelity["volumes"]
    fidelity["lines"] = [
        {**line, "label": LABELS[name], "real": fidelity["real"].get(name), "remark": Line.from_dict(line).remark}
        for name, line in fidelity["volumes"].items()
        if name in LABELS
    ]
    return fidelity


def _read_control(folder: Path) -> list[Rows]:
    path = folder / "fidelity_conditional.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return [tabulate(found), tabulate_errors(found)]


def _draw_curves(folder: Path) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    curves, pictures = read_events(folder / "tensorboard")
    last_step = max((steps[-1] for group in curves.values() for steps, _ in group.values()), default=0)
    drawn = {
        group: _embed(plot_curves(group_curves, last_step).encode(), "image/svg+xml")
        for group, group_curves in sorted(curves.items(), key=lambda item: GROUPS.get(item[0], len(GROUPS)))
    }
    return drawn, {
        epoch: {name: _embed(picture, "image/png") for name, picture in shown.items()}
        for epoch, shown in pictures.items()
    }


def render_report(output_dir: str | os.PathLike) -> Path:
    """Write the report of a run's folder from what lies in it.

    Args:
        output_dir: the folder. Shown are those that are there of: ``run.json`` (title, settings, environment),
            ``tensorboard/``, NIfTI volumes, ``samples.csv``, ``fidelity.json``, ``fidelity_conditional.json`` and PNG
            files.

    Returns:
        The page: ``report.html``, which needs no other file and no network.

    Raises:
        SettingError: when the folder holds nothing to show.
    """
    folder = Path(output_dir)
    run = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    samples = _read_samples(folder)
    curves, slices = _draw_curves(folder)
    parts = {
        "samples": samples[:MOST_ROWS],
        "volumes": _pack_volumes(folder, samples),
        "fidelity": _read_fidelity(folder),
        "control": _read_control(folder),
        "curves": curves,
        "slices": slices,
        "pictures": {
            CAPTIONS.get(path.stem, path.stem): _embed(path.read_bytes(), "image/png")
            for path in sorted(folder.glob("[!.]*.png"))
        },
    }
    if not any(parts.values()):
        what = "holds nothing to report" if folder.is_dir() else "no such folder"
        raise SettingError(f"output_dir={str(output_dir)!r}: {what}; must be the folder of a run.")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html").render(
        {"title": folder.resolve().name, "written": "", "settings": {}, "environment": {}, **run},
        sample_count=len(samples),
        **parts,
    )
    path = folder / "report.html"
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    logger.info("to look at, open %s", path)
    return path


def write_report(output_dir: str | os.PathLike, title: str, settings: Mapping[str, Any]) -> Path:
    """Note what a run was, in ``run.json``, and write its report: the last step of a workflow.

    Args:
        output_dir: the run's folder.
        title: heading of the page.
        settings: what the run was started with, ``device`` and ``precision`` among them.

    Returns:
        The page.
    """
    run = {
        "title": title,
        "written": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "settings": {name: value for name, value in settings.items() if value != ""},
        "environment": describe(settings["device"], settings["precision"]),
    }
    with replacing(Path(output_dir) / "run.json") as partial:
        partial.write_text(json.dumps(run, indent=2, default=str) + "\n")
    return render_report(output_dir)
