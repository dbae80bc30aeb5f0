"""Writes released scores (``bundle/models/fidelity*.json``) into the documents, and the changelog into the metadata.

In a document, ``<!-- end -->`` ends what this writes. It begins with ``<!-- fidelity -->``, the table of generated
volumes, ``<!-- fidelity 5 -->``, its first five lines, ``<!-- seeds -->``, the lines that have a limit for each seed
that was evaluated (``fidelity_102.json``, ...), ``<!-- reconstruction -->``, the scores of reconstructions, or
``<!-- control -->``, a row for each case of ``fidelity_conditional.json``, if it is there.
``make figures`` writes them; with ``--check`` this only says what it would change.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.evaluation.control_table import tabulate, tabulate_errors
from scripts.evaluation.lines import Line
from scripts.evaluation.table import LABELS, format_table, format_verdict

from .format_json import format_json

ROOT = Path(__file__).parents[1]
PAGES = ("README", "fidelity", "conditional")
DOCUMENTS = ("README.md", "README.zh-CN.md", *(f"bundle/docs/{name}.md" for name in PAGES))

# Rows of the table of reconstructions: label, metric, and the metric or value of a perfect denoiser.
RECONSTRUCTION = (
    ("SSIM", "ssim", "ssim_oracle"),
    ("SSIM against the noise-free signal", "ssim_signal", 1),
    ("MSE", "mse", "mse_oracle"),
    ("MAE", "mae", "mae_oracle"),
    ("PSNR, dB", "psnr", "psnr_oracle"),
    ("Dice of the support", "dice", 1),
    ("`a`, root mean square error", "a_rmse", 0),
    ("`b`, root mean square error", "b_rmse", 0),
    ("negative log-likelihood, nats a voxel", "nll", ""),
)


def summarise(fidelity: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores that the metadata repeat, by name."""
    reconstruction = {name: fidelity["reconstruction"][name] for name in ("dice", "ssim_ratio", "mse_ratio")}
    reconstruction |= {name: fidelity["reconstruction"][name] for name in ("a_rmse", "b_rmse")}
    scores = {f"reconstruction_{name}": value for name, value in reconstruction.items()}
    scores |= {f"volumes_{name}": line["value"] for name, line in fidelity["volumes"].items()}
    return {name: round(value, 4) for name, value in scores.items()}


def compare_seeds(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay out the lines that have a limit, a column for each seed."""
    first = {name: Line.from_dict(line) for name, line in evaluations[0]["volumes"].items()}
    rows = [["", *(f"seed {evaluation['settings']['seed']}" for evaluation in evaluations), "limit"]]
    rows += [["---"] * len(rows[0])]
    for name, label in LABELS.items():
        if name in first and first[name].limit is not None:
            values = [f"{evaluation['volumes'][name]['value']:.4f}" for evaluation in evaluations]
            rows.append([label, *values, first[name].bound])
    return [f"| {' | '.join(row)} |" for row in rows]


def list_cases(control: Mapping[str, Any]) -> list[str]:
    """Lay out the cases of an evaluation of requests, one a row: what was found, and the errors."""
    lines: list[str] = []
    for rows in (tabulate(control), tabulate_errors(control)):
        cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        lines += ["", *(f"| {' | '.join(row)} |" for row in cells)]
    return [*lines, ""]


def fill(text: str, evaluations: Sequence[Mapping[str, Any]], control: Mapping[str, Any] | None = None) -> str:
    """Return a document with the released scores in their places.

    Args:
        text: the document.
        evaluations: of which the first is the one that is shown.
        control: the evaluation of requests; without one, its place stays as it is.
    """
    fidelity = evaluations[0]
    volumes, real = (
        {name: Line.from_dict(line) for name, line in fidelity[key].items()} for key in ("volumes", "real")
    )
    table = format_table(volumes, real).splitlines() + format_verdict(volumes)
    scores = fidelity["reconstruction"]

    def show(value: Any) -> str:
        value = scores.get(value, value)
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    rows = ["| metric | this model | perfect denoiser |", "| --- | --- | --- |"]
    rows += [f"| {label} | {show(name)} | {show(perfect)} |" for label, name, perfect in RECONSTRUCTION]

    def replace(match: re.Match) -> str:
        kind, count = match[1], int(match[2] or 0)
        if kind == "control" and control is None:
            return match[0]
        lines = ["```text", *(table[:count] if count else table), "```"]
        shown = {"fidelity": lines, "reconstruction": rows, "seeds": compare_seeds(evaluations)}
        shown["control"] = list_cases(control) if control else []
        return "\n".join([match[0].splitlines()[0], *shown[kind], "<!-- end -->"])

    return re.sub(
        r"<!-- (fidelity|reconstruction|seeds|control)(?: (\d+))? -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL
    )


def read_changelog(text: str) -> dict[str, str]:
    """Return the first paragraph of each version's entry of ``CHANGELOG.md``, newest first."""
    entries = re.findall(r"^## ([\d.]+)\n\n(.*?)\n(?:\n|$)", text, flags=re.DOTALL | re.MULTILINE)
    return {version: " ".join(paragraph.split()).removesuffix(".") for version, paragraph in entries}


def main(arguments: list[str]) -> int:
    """Write the scores; returns how many files would differ, if only that is asked for."""
    models = ROOT / "bundle" / "models"
    scored = [models / "fidelity.json", *sorted(models.glob("fidelity_[0-9]*.json"))]
    evaluations = [json.loads(path.read_text()) for path in scored]
    conditional = models / "fidelity_conditional.json"
    control = json.loads(conditional.read_text()) if conditional.exists() else None
    metadata_path = ROOT / "bundle" / "configs" / "metadata.json"
    changelog = read_changelog((ROOT / "CHANGELOG.md").read_text())
    repeated = {"eval_metrics": summarise(evaluations[0]), "changelog": changelog, "version": next(iter(changelog))}
    metadata = json.loads(metadata_path.read_text()) | repeated
    texts = {ROOT / name: fill((ROOT / name).read_text(), evaluations, control) for name in DOCUMENTS}
    texts[metadata_path] = format_json(json.dumps(metadata))
    differing = [path for path, text in texts.items() if path.read_text() != text]
    for path in differing:
        if "--check" in arguments:
            print(f"{path}: does not repeat bundle/models/fidelity*.json; run `make documents`")
        else:
            path.write_text(texts[path])
    return len(differing) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
