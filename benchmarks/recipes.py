"""Recipes at equal compute: the tutorials' autoencoders and samplers beside this bundle's, by the same instrument.

Each recipe is trained and evaluated by the bundle's own commands, into ``bundle/runs/recipes``; what is there already
is not made again. ``make recipes`` takes about two hours on two cores, prints a table in Markdown and writes
``results/recipes.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import BUNDLE, RELEASED, bundle_command

from scripts.report.curves import read_events

RUNS = BUNDLE / "runs" / "recipes"
RESULTS = Path(__file__).parent / "results" / "recipes.json"

AUTOENCODER = "--train_size 4096 --epochs 1"
DIFFUSION = "--train_size 8192 --epochs 16 --train_batch_size 64"
SHORT = "--train_size 8192 --epochs 4 --val_interval 4 --train_batch_size 64"
EVALUATION = "--test_size 32 --diversity_size 2 --classifier_epochs 1 --num_samples 1000"

# name: (config and overlays, options, names of what must be there first)
TRAININGS = {
    "autoencoder_gan": ("train_autoencoder train_autoencoder_gan", AUTOENCODER, ()),
    "autoencoder": ("train_autoencoder", AUTOENCODER, ()),
    "autoencoder_l1": ("train_autoencoder train_autoencoder_l1", AUTOENCODER, ()),
    "diffusion": ("train_diffusion diffusion", DIFFUSION, ()),
    "flow": ("train_diffusion", DIFFUSION, ()),
    "flow_gan": ("train_diffusion deterministic", DIFFUSION, ("autoencoder_gan",)),
    "flow_own": ("train_diffusion", DIFFUSION, ("autoencoder",)),
    "flow_l1": ("train_diffusion deterministic", DIFFUSION, ("autoencoder_l1",)),
    "flow_short": ("train_diffusion", SHORT, ()),
    "autoencoder_short": ("train_autoencoder", "--train_size 1024 --epochs 1", ()),
    "autoencoder_short_float32": ("train_autoencoder", "--train_size 1024 --epochs 1 --precision float32", ()),
}
# label: (config and overlays, steps of the sampler, the autoencoder's training or "" for the released one, the model's)
RECIPES = {
    "DDPM": ("evaluate diffusion ddpm", 1000, "", "diffusion"),
    "DDIM, 50": ("evaluate diffusion", 50, "", "diffusion"),
    "DDIM, 20": ("evaluate diffusion", 20, "", "diffusion"),
    "DDIM, 10": ("evaluate diffusion", 10, "", "diffusion"),
    "flow, 25, a quarter of the steps": ("evaluate", 25, "", "flow_short"),
    "flow, 25": ("evaluate", 25, "", "flow"),
    "flow, 50": ("evaluate", 50, "", "flow"),
    "flow, 20": ("evaluate", 20, "", "flow"),
    "flow, 10": ("evaluate", 10, "", "flow"),
    "own autoencoder": ("evaluate", 25, "autoencoder", "flow_own"),
    "L1 autoencoder": ("evaluate evaluate_deterministic", 25, "autoencoder_l1", "flow_l1"),
    "adversarial autoencoder": ("evaluate evaluate_deterministic", 25, "autoencoder_gan", "flow_gan"),
}


def run_config(name: str, configs: str, options: str, result: str, threads: int) -> None:
    """Run configs of the bundle, merged, unless their result is there; keeps the log and the seconds it took."""
    folder = RUNS / name
    if (folder / result).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [*bundle_command(*configs.split(), output_dir=folder), *shlex.split(options)]
    print(f"{name}: {shlex.join(command[1:])}", flush=True)
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=BUNDLE, stdout=log, stderr=log, env=environment, check=True)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - start))


def weights(autoencoder: str = "", model: str = "") -> str:
    """Make the options that name the weights of trainings."""
    folder = RUNS / autoencoder if autoencoder else RELEASED
    options = f" --autoencoder_path {folder / 'model_autoencoder.pt'}"
    return options + (f" --model_path {RUNS / model / 'model.pt'}" if model else "")


def folder_of(label: str) -> str:
    """Name the folder of a recipe's evaluation."""
    return "evaluate_" + label.lower().replace(",", "").replace(" ", "_")


def read_validation(folder: Path) -> dict[str, float]:
    """Return each metric of the last validation of a training, by name."""
    curves, _ = read_events(folder / "tensorboard")
    return {name: float(values[-1]) for name, (_, values) in curves["validation"].items()}


def gather_results() -> dict[str, Any]:
    """Gather what the trainings and evaluations that are there wrote: validation metrics, scores, seconds."""
    trainings: dict[str, Any] = {}
    for name in TRAININGS:
        if not (RUNS / name / "seconds.json").exists():
            continue
        seconds = json.loads((RUNS / name / "seconds.json").read_text())
        trainings[name] = {"seconds": seconds, "validation": read_validation(RUNS / name)}
    recipes: dict[str, Any] = {}
    for label, (_, steps, _, _) in RECIPES.items():
        path = RUNS / folder_of(label) / "fidelity.json"
        if path.exists():
            result = json.loads(path.read_text())
            values = {name: line["value"] for name, line in result["volumes"].items()}
            volumes = {name: value if math.isfinite(value) else None for name, value in values.items()}
            recipes[label] = {"steps": steps, "volumes": volumes, "reconstruction": result["reconstruction"]}
    return {"trainings": trainings, "recipes": recipes}


def read_results() -> dict[str, Any]:
    """Read the results that were last written."""
    return json.loads(RESULTS.read_text())


def format_recipes(recipes: dict[str, Any]) -> str:
    """Lay out the evaluations as a table in Markdown."""
    columns = ("valid", "ks_r", "ks_cx", "ks_cy", "ks_cz", "ks_a", "ks_b", "kurtosis", "autocorrelation_x")
    names = " | ".join(name.removeprefix("ks_") for name in columns)
    rows = [f"| recipe | steps | {names} | Dice of reconstructions |"]
    rows += ["| --- | --- |" + " --- |" * (len(columns) + 1)]
    for label, result in recipes.items():
        numbers = [result["volumes"].get(name) for name in columns] + [result["reconstruction"]["dice"]]
        texts = ["not tested" if number is None else f"{number:.3f}" for number in numbers]
        rows += [f"| {label} | {result['steps']} | " + " | ".join(texts) + " |"]
    return "\n".join(rows)


def main() -> None:
    """Train and evaluate every recipe, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="trainings and evaluations that run at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--options", default="", help="further options for every training, e.g. '--seed 1'")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="the recipes to run")
    arguments = parser.parse_args()
    evaluations = {label: RECIPES[label] for label in arguments.only}
    models = {model for *_, model in evaluations.values()}
    wanted = models.union(*(TRAININGS[model][2] for model in models))
    if len(evaluations) == len(RECIPES):
        wanted = set(TRAININGS)
    jobs: dict[str, Future] = {}

    def submit(name: str, needed: tuple[str, ...], configs: str, options: str, result: str) -> None:
        def job() -> None:
            for other in needed:
                jobs[other].result()  # the pool starts jobs in order: what is waited for is running or done
            run_config(name, configs, options, result, arguments.threads)

        jobs[name] = pool.submit(job)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name, (configs, options, needed) in TRAININGS.items():
            if name not in wanted:
                continue
            options += f" {arguments.options}"
            if name.startswith("autoencoder"):
                submit(name, needed, configs, options, "model_autoencoder.pt")
            else:
                submit(name, needed, configs, options + weights(*needed), "model.pt")
        for label, (configs, steps, autoencoder, model) in evaluations.items():
            options = f"{EVALUATION} --num_inference_steps {steps}" + weights(autoencoder, model)
            submit(folder_of(label), (model,), configs, options, "fidelity.json")
    for name, future in jobs.items():
        if error := future.exception():
            print(f"{name} failed: {error}; see {RUNS / name / 'log.txt'}")
    found, results = gather_results(), read_results()
    for part, values in results.items():
        values.update(found[part])  # what was not run keeps its results
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(format_recipes(results["recipes"]))


if __name__ == "__main__":
    main()
