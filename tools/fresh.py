"""The archive where nothing else is: a new environment with exactly the packages of the metadata, an empty folder.

``make fresh`` unpacks what ``make bundle`` wrote and runs its commands there, those of the trainings, inference and
evaluation at smoke size. It tells whether the metadata name every package that the bundle needs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from .card import NAME, list_packages
from .cpu_index import main as choose_index

ROOT = Path(__file__).parents[1]

NETWORK = "--net_id network_def --meta_file configs/metadata.json --config_file configs/inference.json"
COMMANDS = (
    f"verify_metadata --meta_file configs/metadata.json --filepath {ROOT}/tests/metadata_schema.json",
    f"verify_net_in_out {NETWORK}",
    f"ckpt_export {NETWORK} --filepath models/model.ts --ckpt_file models/model.pt",
    "run preview --config_file configs/data.json",
    *(
        f"run --config_file \"['configs/{name}.json','configs/smoke.json']\""
        for name in ("train_autoencoder", "train_diffusion", "inference", "evaluate")
    ),
)


def run(folder: str | Path, index: str) -> None:
    """Run the bundle's commands in a new environment.

    Args:
        folder: of the archive.
        index: PyTorch's builds for the CPU, for a machine without an NVIDIA driver.

    Raises:
        subprocess.CalledProcessError: at the first command that fails.
    """
    (archive,) = Path(folder).glob(f"{NAME}_v*.zip")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as place:
        zipfile.ZipFile(archive).extractall(place)
        bundle, python = Path(place) / NAME, Path(place) / "venv" / "bin" / "python"
        packages = list_packages(json.loads((bundle / "configs" / "metadata.json").read_text()))
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *choose_index(index).split(), *packages], check=True, env=environment)
        for command in COMMANDS:
            started = time.monotonic()
            subprocess.run(
                [str(python), "-W", "ignore", "-m", "monai.bundle", *shlex.split(command)],
                check=True,
                cwd=bundle,
                env=environment,
            )
            print(f"{time.monotonic() - started:.0f} s: {command}", flush=True)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
