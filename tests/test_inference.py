"""From weights to volumes: files, table, picture, and that a volume depends on seed and index alone."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import run_workflow

from scripts.evaluation.measurement import measure_spheres


@pytest.fixture(scope="module")
def generate(small_weights, tmp_path_factory):
    def run(**overrides) -> Path:
        folder = tmp_path_factory.mktemp("inference")
        settings = {"image_size": 32, "model_path": small_weights["model_path"], "output_dir": str(folder)}
        run_workflow("inference", "smoke", **settings, **overrides)
        return folder

    return run


@pytest.fixture(scope="module")
def sampled(generate) -> Path:
    """What inference writes with its defaults but for the size."""
    return generate()


def volumes_in(folder: Path) -> np.ndarray:
    return np.stack([nibabel.load(path).get_fdata(dtype=np.float32) for path in sorted(folder.glob("*.nii.gz"))])


def test_files_are_nifti(sampled):
    names = sorted(path.name for path in sampled.glob("*.nii.gz"))
    assert names == [f"sphere_{i:05d}.nii.gz" for i in range(4)]
    image = nibabel.load(sampled / names[0])
    assert image.shape == (32, 32, 32)
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(image.affine, np.eye(4))


def test_table_matches_files(sampled):
    """The table holds what is measured in the files."""
    rows = list(csv.DictReader((sampled / "samples.csv").open()))
    assert [row["file"] for row in rows] == [f"sphere_{i:05d}.nii.gz" for i in range(4)]
    measured = measure_spheres(torch.from_numpy(volumes_in(sampled))[:, None])
    for name, values in measured.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_preview(sampled):
    assert (sampled / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_volumes_by_seed(sampled, generate):
    assert np.array_equal(volumes_in(generate()), volumes_in(sampled))
    assert not np.array_equal(volumes_in(generate(seed=1)), volumes_in(sampled))


def test_ddpm_by_seed(diffusion_weights, tmp_path):
    """The noise of DDPM's steps follows the seed too, and is another one for volumes that are added."""
    settings = {"image_size": 32, "model_path": diffusion_weights["model_path"], "num_samples": 2}
    settings |= {"num_train_timesteps": 20, "num_inference_steps": 20}
    found = []
    for i in range(2):
        torch.rand(i)  # whatever was drawn before
        run_workflow("inference", "diffusion", "ddpm", "smoke", **settings, output_dir=str(tmp_path / str(i)))
        found.append(volumes_in(tmp_path / str(i)))
    assert np.array_equal(*found)
    settings["num_samples"] = 4
    run_workflow("inference", "diffusion", "ddpm", "smoke", **settings, output_dir=str(tmp_path / "0"))
    assert torch.initial_seed() == 2 and len(volumes_in(tmp_path / "0")) == 4


@pytest.mark.parametrize("overrides", [{"num_samples": 3, "sample_batch_size": 3}, {"sample_batch_size": 1}])
def test_volumes_by_index(sampled, generate, overrides):
    """A volume does not depend on how many there are, nor on how many at a time."""
    volumes = volumes_in(generate(**overrides))
    expected = volumes_in(sampled)[: len(volumes)]
    assert np.array_equal(volumes, expected)


def test_another_decoder(small_weights, generate, sampled, tmp_path):
    weights = torch.load(small_weights["autoencoder_path"])
    weights["decoder.blocks.0.conv.weight"] *= 2
    other = tmp_path / "other.pt"
    torch.save(weights, other)
    assert not np.array_equal(volumes_in(generate(autoencoder_path=str(other))), volumes_in(sampled))
    same = volumes_in(generate(autoencoder_path=small_weights["autoencoder_path"]))
    assert np.array_equal(same, volumes_in(sampled))
