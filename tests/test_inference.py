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
def generate(smoke, tmp_path_factory):
    def run(**overrides) -> Path:
        folder = tmp_path_factory.mktemp("inference")
        run_workflow("inference", "smoke", output_dir=str(folder), model_path=str(smoke["model_path"]), **overrides)
        return folder

    return run


@pytest.fixture(scope="module")
def generated(generate):
    return generate()


def volumes_in(folder: Path) -> np.ndarray:
    return np.stack([nibabel.load(path).get_fdata(dtype=np.float32) for path in sorted(folder.glob("*.nii.gz"))])


def test_volumes_are_nifti_files(generated):
    names = sorted(path.name for path in generated.glob("*.nii.gz"))
    assert names == [f"sphere_{i:05d}.nii.gz" for i in range(4)]
    image = nibabel.load(generated / names[0])
    assert image.shape == (64, 64, 64)
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(image.affine, np.eye(4))


def test_the_table_holds_what_is_measured_in_the_files(generated):
    rows = list(csv.DictReader((generated / "samples.csv").open()))
    assert [row["file"] for row in rows] == [f"sphere_{i:05d}.nii.gz" for i in range(4)]
    measured = measure_spheres(torch.from_numpy(volumes_in(generated))[:, None])
    for name, values in measured.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_there_is_a_preview(generated):
    assert (generated / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_volumes_and_another_does_not(generated, generate):
    assert np.array_equal(volumes_in(generate()), volumes_in(generated))
    assert not np.array_equal(volumes_in(generate(seed=1)), volumes_in(generated))


@pytest.mark.parametrize("overrides", [{"num_samples": 3, "sample_batch_size": 3}, {"sample_batch_size": 1}])
def test_a_volume_depends_on_seed_and_index_alone(generated, generate, overrides):
    volumes = volumes_in(generate(**overrides))
    expected = volumes_in(generated)[: len(volumes)]
    assert np.array_equal(volumes, expected)


def test_another_autoencoder_can_decode(smoke, generate, generated):
    weights = torch.load(smoke["autoencoder_path"])
    weights["decoder.blocks.0.conv.weight"] *= 2
    other = smoke["autoencoder"] / "other.pt"
    torch.save(weights, other)
    assert not np.array_equal(volumes_in(generate(autoencoder_path=str(other))), volumes_in(generated))
    same = volumes_in(generate(autoencoder_path=str(smoke["autoencoder_path"])))
    assert np.array_equal(same, volumes_in(generated))
