"""Other recipes in the same time: the tutorials' autoencoders beside this bundle's, by the same instrument.

Each autoencoder alone is trained for about as long as both stages of the release take, 50 to 60 minutes on two cores
with AVX-512 and bf16; a flow with the release's settings is then trained on its latents. All is done by the bundle's
own commands, into ``bundle/runs/recipes``; what is there already is not made again. ``make recipes`` takes about three
hours, prints a table in Markdown, writes ``results/recipes.json``, and draws volumes of each beside real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from measure import BUNDLE, RELEASED, bundle_command, load_config

from scripts.evaluation.slices import plot_volumes

RUNS = BUNDLE / "runs" / "recipes"
RESULTS = Path(__file__).parent / "results" / "recipes.json"
FIGURE = BUNDLE / "docs" / "figures" / "recipes.png"

# label: (overlay of the first stage, options that make it last as long as both stages of the release). The release has
# neither.
RECIPES = {
    "release": ("", ""),
    "L1 autoencoder": ("train_autoencoder_l1", "--epochs 28"),
    "adversarial autoencoder": ("train_autoencoder_gan", "--epochs 10 --train_size 8000"),
}
COLUMNS = ("valid", "ks_r", "ks_cx", "ks_cy", "ks_cz", "ks_a", "ks_b", "kurtosis", "autocorrelation_x", "classifier")


def folder_of(label: str) -> Path:
    """Name the folder of a recipe."""
    return RUNS / label.replace(" ", "_")


def model_of(label: str) -> Path:
    """Name the weights of a recipe."""
    return folder_of(label) / "diffusion" / "model.pt" if RECIPES[label][0] else RELEASED / "model.pt"


def run_config(folder: Path, configs: str, options: str, result: str) -> None:
    """Run configs of the bundle, merged, unless their result is there; keeps the log and the seconds it took."""
    if (folder / result).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [*bundle_command(*configs.split(), output_dir=folder), *shlex.split(options)]
    print(f"{shlex.join(command[1:])} > {folder / 'log.txt'}", flush=True)
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, cwd=BUNDLE, stdout=log, stderr=log, check=True)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - start))


def run_recipe(label: str, options: str) -> None:
    """Train and evaluate a recipe; the options are for each of its commands."""
    folder, (overlay, longer) = folder_of(label), RECIPES[label]
    autoencoder = folder / "autoencoder" / "model_autoencoder.pt" if overlay else RELEASED / "model_autoencoder.pt"
    kept = f" --autoencoder_path {autoencoder} {options}"
    if overlay:
        configs = f"train_autoencoder {overlay}"
        run_config(folder / "autoencoder", configs, f"{longer} {options}", "model_autoencoder.pt")
        run_config(folder / "diffusion", "train_diffusion deterministic", kept, "model.pt")
    configs = "evaluate evaluate_deterministic" if overlay else "evaluate"
    weights = f" --model_path {model_of(label)}"
    run_config(folder / "evaluation", configs, "--num_samples 2000" + weights + kept, "fidelity.json")


def gather_results() -> dict[str, Any]:
    """Gather what was written for each recipe that is there: seconds of each command, and scores."""
    results: dict[str, Any] = {}
    for label in RECIPES:
        if not (folder_of(label) / "evaluation" / "fidelity.json").exists():
            continue
        found = json.loads((folder_of(label) / "evaluation" / "fidelity.json").read_text())
        values = {name: line["value"] for name, line in found["volumes"].items()}
        seconds = {path.parent.name: json.loads(path.read_text()) for path in folder_of(label).glob("*/seconds.json")}
        results[label] = {
            "seconds": seconds,
            "volumes": {name: value if math.isfinite(value) else None for name, value in values.items()},
            "reconstruction": found["reconstruction"],
        }
    return results


def format_recipes(results: dict[str, Any]) -> str:
    """Lay out the evaluations as a table in Markdown."""
    names = " | ".join(name.removeprefix("ks_") for name in COLUMNS)
    rows = [f"| recipe | {names} | MSE beside the oracle's |", "| --- |" + " --- |" * (len(COLUMNS) + 1)]
    for label, result in results.items():
        numbers = [*(result["volumes"].get(name) for name in COLUMNS), result["reconstruction"]["mse_ratio"]]
        texts = ["undefined" if number is None else f"{number:.4f}" for number in numbers]
        rows += [f"| {label} | " + " | ".join(texts) + " |"]
    return "\n".join(rows)


def draw_recipes(path: Path, count: int = 3) -> None:
    """Draw volumes of each recipe that is trained, a row each, below real spheres."""
    spheres = load_config("train_autoencoder").get_parsed_content("validate#spheres")
    rows = {"real spheres": [spheres[i]["image"] for i in range(count)]}
    for label, (overlay, _) in RECIPES.items():
        if not model_of(label).exists():
            continue
        names = ("inference", "deterministic") if overlay else ("inference",)
        config = load_config(*names, num_samples=count, model_path=str(model_of(label)))
        generator, noise = config.get_parsed_content("network").eval(), config.get_parsed_content("dataset")
        device = generator.scale_factor.device
        drawn = [[noise[i][key][None].to(device) for key in ("image", "texture")] for i in range(count)]
        rows[label] = [generator(*inputs)[0].cpu() for inputs in drawn]
    items = [{f"volume {i + 1}": volume for i, volume in enumerate(volumes)} for volumes in rows.values()]
    plot_volumes(items, list(rows), path)


def main() -> None:
    """Train and evaluate the recipes, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--options", default="", help="further options for every command, e.g. '--seed 1'")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="the recipes to run")
    arguments = parser.parse_args()
    for label in arguments.only:
        run_recipe(label, arguments.options)
        found = json.loads(RESULTS.read_text()) | gather_results()  # what was not run keeps its results
        results = {label: found[label] for label in RECIPES if label in found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(format_recipes(results))
        draw_recipes(FIGURE)


if __name__ == "__main__":
    main()
