"""What the tests share: the bundle's workflows at small sizes, weights that such a training gave, and helpers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import CommandServer
from filelock import FileLock
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, download
from monai.transforms import SaveImage

from scripts.command_line import explain
from scripts.data.spheres import SphereDataset, SphereLaw
from tools.archive import write_archive
from tools.card import NAME

# Workers of pytest-xdist share the cores, and so do the processes that their tests start: more threads than cores only
# wait for each other.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
STAGES = ("train_autoencoder", "train_diffusion")
# An eighth of the volume, two steps an epoch, in float32: seconds, on the same path of code.
SMALL_BLOCKS = {"block_size": 4, "latent_stride": 32}  # of small volumes, where an overlay is for large ones
SMALL = {"image_size": 32, "precision": "float32", "train_size": 8, "train_batch_size": 4, "val_size": 2}


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def read_config(name: str) -> dict[str, Any]:
    """Read ``configs/<name>.json`` as it stands."""
    return read_json(CONFIGS / f"{name}.json")


METADATA = read_config("metadata")
FIDELITY = read_json(BUNDLE / "models" / "fidelity.json")  # of the released weights


def parse_config(*names: str, **overrides: Any) -> ConfigParser:
    """Parse configs merged in this order, in float32; unlike a workflow, nothing is checked or initialised."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in names])
    parser.update({"precision": "float32", **overrides})
    return parser


def make_workflow(name: str, *overlays: str, run_id: str = "run", **overrides: Any) -> ConfigWorkflow:
    """Create and initialise the workflow of ``configs/<name>.json`` with overlays merged over it."""
    return create_workflow(
        config_file=[str(CONFIGS / f"{config}.json") for config in (name, *overlays)],
        workflow_type="train" if name.startswith("train") else "infer",
        bundle_root=str(BUNDLE),
        run_id=run_id,
        **overrides,
    )


def run_workflow(name: str, *overlays: str, **overrides: Any) -> ConfigWorkflow:
    """Run a workflow to its end."""
    workflow = make_workflow(name, *overlays, **overrides)
    workflow.run()
    workflow.finalize()
    return workflow


def find_mistake(call: Callable[[], Any]) -> str:
    """Return the line that the command line ends with when ``call`` fails by a user's mistake."""
    with pytest.raises(Exception) as failure:
        call()
    message = explain(failure.value)
    assert message is not None, failure.value
    assert "\n" not in message
    return message


def run_process(
    *command: str, folder: Path, check: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that knows no more of this repository than a user's does.

    Args:
        command: program and arguments; ``python`` is this one, and what is installed beside it is on the path.
        folder: the working directory.
        check: whether a failure of the command fails the test, with what the command wrote.
        environment: variables to set.

    Returns:
        The process, with its output as text.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    inherited["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), inherited["PATH"]])
    command = tuple(sys.executable if word == "python" else word for word in command[:1]) + command[1:]
    process = subprocess.run(
        command, cwd=folder, env=inherited | (environment or {}), check=False, capture_output=True, text=True
    )
    assert not check or process.returncode == 0, f"{process.stdout}\n{process.stderr}"
    return process


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """Start commands as processes of their own, without their imports."""
    server = CommandServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Make a folder once for all workers of pytest-xdist: the first that asks fills it, the others wait for it.

    ``make_once(name, fill)`` returns the folder that ``fill(folder)`` wrote into. A test must not change it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own below the session's

    def make(name: str, fill: Callable[[Path], Any]) -> Path:
        folder, done = root / f"shared_{name}", root / f"shared_{name}.done"
        with FileLock(root / f"shared_{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what another worker left when it failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def smoke(make_once) -> dict[str, Path]:
    """Both stages trained at the sizes of ``SMALL`` for the smoke overlay's epochs: output folders and weights."""

    def paths(root: Path) -> dict[str, Path]:
        folders = {"autoencoder": root / "autoencoder", "diffusion": root / "diffusion"}
        weights = {"autoencoder_path": root / "autoencoder" / "model_autoencoder.pt"}
        return folders | weights | {"model_path": root / "diffusion" / "model.pt"}

    def fill(root: Path) -> None:
        path = paths(root)
        run_workflow("train_autoencoder", "smoke", **SMALL, output_dir=str(path["autoencoder"]))
        run_workflow(
            "train_diffusion",
            "smoke",
            **SMALL,
            output_dir=str(path["diffusion"]),
            autoencoder_path=str(path["autoencoder_path"]),
        )

    return paths(make_once("smoke", fill))


@pytest.fixture(scope="session")
def generated(small_weights, make_once) -> Path:
    """What inference and then evaluation write with the weights of ``small_weights``, in one folder."""

    def fill(folder: Path) -> None:
        for name in ("inference", "evaluate"):
            run_workflow(name, "smoke", image_size=32, output_dir=str(folder), **small_weights)

    return make_once("generated", fill)


@pytest.fixture(scope="session")
def small_autoencoder(smoke) -> Path:
    """Weights of the autoencoder of ``smoke``."""
    return smoke["autoencoder_path"]


@pytest.fixture(scope="session")
def small_weights(smoke) -> dict[str, str]:
    """Weights of both stages of ``smoke``, by their keys."""
    return {key: str(smoke[key]) for key in ("autoencoder_path", "model_path")}


@pytest.fixture(scope="session")
def diffusion_weights(smoke, make_once) -> dict[str, str]:
    """As ``small_weights``, of a diffusion of 20 timesteps instead of a rectified flow, trained for an epoch."""
    settings = {**SMALL, "epochs": 1, "num_train_timesteps": 20, "num_inference_steps": 5}
    path = {"autoencoder_path": str(smoke["autoencoder_path"])}

    def fill(folder: Path) -> None:
        run_workflow("train_diffusion", "diffusion", "smoke", **settings, **path, output_dir=str(folder))

    return path | {"model_path": str(make_once("small_ddpm", fill) / "model.pt")}


@pytest.fixture(scope="session")
def conditional_weights(smoke, make_once) -> dict[str, str]:
    """As ``small_weights``, of a diffusion model that can be asked for a sphere's parameters."""
    path = {"autoencoder_path": str(smoke["autoencoder_path"])}

    def fill(folder: Path) -> None:
        run_workflow("train_diffusion", "conditional", "smoke", **SMALL, **path, output_dir=str(folder))

    return path | {"model_path": str(make_once("conditional", fill) / "model.pt")}


@pytest.fixture
def small_settings(small_autoencoder) -> Callable[..., dict[str, Any]]:
    """Settings of a small training of a stage, by its name."""

    def make(stage: str, **more: Any) -> dict[str, Any]:
        path = {"autoencoder_path": str(small_autoencoder)} if stage == "train_diffusion" else {}
        return {**SMALL, **path, **more}

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real spheres, of seed 3 and the stream "test", as NIfTI files."""
    path = tmp_path_factory.mktemp("volumes")
    save = SaveImage(output_dir=path, output_postfix="", output_ext=".nii.gz", separate_folder=False, print_log=False)
    dataset = SphereDataset(6, SphereLaw(), seed=3, stream="test")
    for i in range(6):
        save(dataset[i]["image"], meta_data={"filename_or_obj": f"volume_{i}.nii.gz"})
    return path


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's archive as ``make bundle`` writes it; the folder with the same files lies beside it."""
    return write_archive(BUNDLE, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def installed(archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where MONAI's own download put the archive: the folder that holds the bundle's."""
    path = tmp_path_factory.mktemp("bundles")
    download(NAME, url=archive.as_uri(), bundle_dir=str(path), progress=False)
    return path


@pytest.fixture
def bundle_stays():
    """The test leaves no file in the bundle."""

    def files():
        return {path for path in BUNDLE.rglob("*") if "__pycache__" not in path.parts and "runs" not in path.parts}

    before = files()
    yield
    assert files() == before
