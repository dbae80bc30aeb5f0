"""The archive for other machines: what is in it, and that it works where MONAI's tools unpack it."""

import zipfile

import pytest
import torch
from conftest import BUNDLE, METADATA, ROOT, make_workflow, run_process
from monai.bundle import create_workflow, load

from tools.archive import write_archive
from tools.card import NAME


def test_archive_contents(archive, tmp_path):
    """The bundle's files under its name and version, nothing else, and the same bytes each time."""
    assert archive.name == f"{NAME}_v{METADATA['version']}.zip"
    names = zipfile.ZipFile(archive).namelist()
    tracked = run_process("git", "ls-files", folder=BUNDLE).stdout.splitlines()
    assert set(names) == {f"{NAME}/{name}" for name in [*tracked, "README.md"]}
    assert names == sorted(names)
    assert f'name = "{NAME.replace("_", "-")}"' in (ROOT / "pyproject.toml").read_text()
    assert write_archive(BUNDLE, tmp_path).read_bytes() == archive.read_bytes()


def test_generate_elsewhere(installed):
    """The unpacked archive generates where this repository is not."""
    arguments = ["run", "--config_file", "configs/inference.json", "--num_samples", "2", "--num_inference_steps", "2"]
    folder = installed / NAME
    run_process("python", "-m", "monai.bundle", *arguments, folder=folder)
    assert {path.name for path in (folder / "runs" / "inference").iterdir()} >= {"samples.csv", "sphere_00001.nii.gz"}


@pytest.mark.parametrize("name", ["train_autoencoder", "train_diffusion", "inference", "evaluate", "data"])
def test_workflow_of_config(name, installed, tmp_path, monkeypatch):
    """A workflow of each config is created from the unpacked archive."""
    monkeypatch.chdir(tmp_path)
    root = installed / NAME
    kind = None if name == "data" else "train" if name.startswith("train") else "infer"
    workflow = create_workflow(
        config_file=str(root / "configs" / f"{name}.json"),
        workflow_type=kind,
        bundle_root=str(root),
        output_dir=str(tmp_path / "out"),
    )
    assert kind is None or workflow.device.type in ("cpu", "cuda")


def test_load(installed, tmp_path, monkeypatch):
    """MONAI's ``load`` returns the generator with the released weights."""
    monkeypatch.chdir(tmp_path)
    root = {"bundle_root": str(installed / NAME)}
    loaded = load(NAME, bundle_dir=installed, workflow_type="inference", device="cpu", args_file=root)
    ours = make_workflow("inference", device="cpu").network_def
    expected = ours.state_dict()
    assert set(loaded.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    noise, texture = torch.randn(1, 32, 2, 2, 2), torch.randn(1, 1, 64, 64, 64)
    assert torch.equal(loaded(noise, texture), ours(noise, texture))
