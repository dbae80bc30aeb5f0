"""What the tests share: the bundle's workflows at small sizes, and weights that such a training gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.transforms import SaveImage

from scripts.data.spheres import SphereDataset, SphereLaw

BUNDLE = Path(__file__).parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"


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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both stages trained by the default configs with the smoke overlay: output folders and weights."""
    root = tmp_path_factory.mktemp("smoke")
    paths = {"autoencoder": root / "autoencoder", "diffusion": root / "diffusion"}
    paths["autoencoder_path"] = paths["autoencoder"] / "model_autoencoder.pt"
    paths["model_path"] = paths["diffusion"] / "model.pt"
    run_workflow("train_autoencoder", "smoke", output_dir=str(paths["autoencoder"]))
    run_workflow(
        "train_diffusion",
        "smoke",
        output_dir=str(paths["diffusion"]),
        autoencoder_path=str(paths["autoencoder_path"]),
    )
    return paths


@pytest.fixture(scope="session")
def generated(smoke: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What inference and then evaluation write with the weights of ``smoke``, in one folder."""
    path = tmp_path_factory.mktemp("generated")
    weights = {key: str(smoke[key]) for key in ("autoencoder_path", "model_path")}
    for name in ("inference", "evaluate"):
        run_workflow(name, "smoke", output_dir=str(path), **weights)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real spheres, of seed 3 and the stream "test", as NIfTI files."""
    path = tmp_path_factory.mktemp("volumes")
    save = SaveImage(output_dir=path, output_postfix="", output_ext=".nii.gz", separate_folder=False, print_log=False)
    dataset = SphereDataset(6, SphereLaw(), seed=3, stream="test")
    for i in range(6):
        save(dataset[i]["image"], meta_data={"filename_or_obj": f"volume_{i}.nii.gz"})
    return path
