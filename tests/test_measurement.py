"""The sphere in a volume: how closely it is recovered, and what is said of volumes that are none."""

import numpy as np
import pytest
import torch

from scripts.data.spheres import SphereDataset, SphereLaw
from scripts.evaluation.ball import fit_ball
from scripts.evaluation.measurement import COLUMNS, measure_dataset, measure_spheres
from scripts.evaluation.validity import explain_invalid

LAW = SphereLaw()
POSITION = torch.arange(64) + 0.5
X, Y, Z = torch.meshgrid(POSITION, POSITION, POSITION, indexing="ij")


def ball(r, cx=32.0, cy=32.0, cz=32.0):
    return (X - cx) ** 2 + (Y - cy) ** 2 + (Z - cz) ** 2 <= r**2


def fill(support):
    return torch.where(support, torch.randn(support.shape), 0.0)[None]


def explain(*volumes):
    return explain_invalid(measure_dataset([{"image": volume} for volume in volumes]), LAW)


def test_real_spheres_recovered():
    dataset = SphereDataset(400, LAW, seed=5, stream="test")
    true = [[item["r"], *item["c"], item["a"], item["b"]] for item in (dataset[i] for i in range(400))]
    measured = measure_dataset(dataset)
    r, cx, cy, cz, a, b = np.array(true).T
    for name, values in {"r": r, "cx": cx, "cy": cy, "cz": cz}.items():
        error = np.abs(measured[name] - values)
        assert np.quantile(error, 0.95) < 0.1, name
        assert error.max() < 0.2, name
    # Of 400 normal errors 1.1 are expected beyond three standard errors; more than 7 happen with probability 2e-5.
    voxels = measured["voxels"]
    assert (np.abs(measured["a"] - a) > 3 * b / voxels**0.5).sum() <= 7
    assert (np.abs(measured["b"] - b) > 3 * b / (2 * voxels) ** 0.5).sum() <= 7
    assert explain_invalid(measured, LAW) == [""] * 400
    assert measured["dice"].min() > 0.99
    assert (measured["background"] == 0).all()


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (torch.zeros(1, 64, 64, 64), "empty"),
        (torch.randn(1, 64, 64, 64), "no background"),
        (fill(ball(24)).index_fill(3, torch.tensor(32), torch.inf), "not finite"),
        (fill(ball(8, cx=14) | ball(8, cx=48)), "separate parts: 2"),
        (fill(ball(24) & (X < 32)), "no ball"),
        (fill(((X - 32).abs() < 16) & ((Y - 32).abs() < 16) & ((Z - 32).abs() < 16)), "no ball"),
        (fill(ball(24) & ~ball(20)), "no ball"),
        (fill(ball(13)), "radius outside"),
        (fill(ball(20, cx=17)), "not wholly inside the grid along x"),
    ],
    ids=["empty", "noise", "infinite", "two balls", "half a ball", "cube", "shell", "too small", "cut off"],
)
def test_invalid_with_reason(volume, reason):
    assert explain(volume)[0].startswith(reason)


def test_fit_of_cut_ball():
    """A ball that the grid cuts off is fitted at its true place."""
    # The centroid of what is left is a voxel off; maximum likelihood knows that there is nothing to see outside.
    fit = fit_ball(ball(20, cx=17).float())
    assert fit.tolist() == pytest.approx([20, 17, 32, 32], abs=0.1)


def test_fit_of_rough_surface():
    """A rough surface does not move the fit."""
    clean = ball(20, 30, 33, 35)
    distance = ((X - 30) ** 2 + (Y - 33) ** 2 + (Z - 35) ** 2).sqrt()
    flipped = clean ^ (((distance - 20).abs() < 1) & (torch.rand(64, 64, 64) < 0.1))
    measured = measure_spheres(fill(flipped)[None])
    assert [measured[name].item() for name in ("r", "cx", "cy", "cz")] == pytest.approx([20, 30, 33, 35], abs=0.1)
    assert 0.97 < measured["dice"].item() < 0.995


def test_texture_statistics():
    """Each statistic of the texture tells what is wrong with it."""
    support = ball(22)
    distance = ((X - 32) ** 2 + (Y - 32) ** 2 + (Z - 32) ** 2).sqrt()
    noise = torch.randn(64, 64, 64)
    textures = {
        "normal": noise,
        "uniform": torch.rand(64, 64, 64),
        "smooth along y": noise + noise.roll(1, dims=1),
        "brighter at the rim": noise + 0.01 * distance,
        "wilder at the rim": noise * (1 + 0.01 * distance),
        "spots in the background": noise,
    }
    volumes = torch.stack([torch.where(support, texture, 0.0) for texture in textures.values()])[:, None]
    volumes[-1, 0, 0, 0, :8] = 1.0
    table = {name: values.tolist() for name, values in measure_spheres(volumes).items()}
    rows = {name: {key: table[key][i] for key in table} for i, name in enumerate(textures)}

    # 44,600 voxels: the standard errors are 0.023 of the kurtosis, 0.005 of an autocorrelation, 0.01 of rim_mean
    assert rows["normal"]["kurtosis"] == pytest.approx(0, abs=0.1)
    assert rows["uniform"]["kurtosis"] == pytest.approx(-1.2, abs=0.05)
    assert rows["normal"]["normal_ks"] < 0.01 < 0.04 < rows["uniform"]["normal_ks"]
    assert rows["smooth along y"]["autocorrelation_y"] == pytest.approx(0.5, abs=0.03)
    assert rows["smooth along y"]["autocorrelation_x"] == pytest.approx(0, abs=0.03)
    assert rows["brighter at the rim"]["rim_mean"] > 0.05 > abs(rows["normal"]["rim_mean"])
    assert rows["wilder at the rim"]["rim_std"] > 0.04 > abs(rows["normal"]["rim_std"])
    assert rows["spots in the background"]["background"] > 0 == rows["normal"]["background"]


def test_background_tolerance():
    volume = fill(ball(20)) + 0.001 * torch.randn(1, 64, 64, 64)
    assert measure_spheres(volume[None])["voxels"].item() == 64**3
    measured = measure_spheres(volume[None], tolerance=0.01)
    assert measured["r"].item() == pytest.approx(20, abs=0.2)


def test_empty_volume():
    measured = measure_spheres(torch.zeros(2, 1, 16, 16, 16))
    assert measured["dice"].tolist() == measured["voxels"].tolist() == [0, 0]
    assert measured["a"].isnan().all() and measured["r"].isnan().all()


def test_dataset_in_workers():
    """Volumes are measured in the order of the dataset, by worker processes as by this one."""
    dataset = SphereDataset(7, LAW, seed=1)
    volumes = torch.stack([dataset[i]["image"] for i in range(7)])
    whole = measure_spheres(volumes)
    for num_workers in (0, 2):
        measured = measure_dataset(dataset, batch_size=3, num_workers=num_workers)
        assert tuple(measured) == COLUMNS
        for name, values in whole.items():
            np.testing.assert_allclose(measured[name], values.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\), got \(2, 3, 8, 8, 8\)"):
        measure_spheres(torch.zeros(2, 3, 8, 8, 8))
