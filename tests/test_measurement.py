"""Parameters measured from volumes, and their comparison with the law."""

import numpy as np
import pytest
import torch

from scripts.measurement import compare_with_law, concatenate, measure_spheres
from scripts.spheres import SphereDataset, SphereLaw


@pytest.fixture(scope="module")
def spheres():
    dataset = SphereDataset(100, SphereLaw(), seed=5, stream="test")
    items = [dataset[i] for i in range(100)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def test_real_spheres_are_measured_closely(spheres):
    measured = measure_spheres(spheres["image"])
    assert (measured["r"] - spheres["r"]).abs().max() < 0.1
    for axis, name in enumerate(("cx", "cy", "cz")):
        assert (measured[name] - spheres["c"][:, axis]).abs().max() < 0.1
    count = (spheres["image"] != 0).sum(dim=(1, 2, 3, 4))
    # four standard errors; one of 200 fails by chance with probability 0.013
    assert ((measured["a"] - spheres["a"]).abs() < 4 * spheres["b"] / count**0.5).all()
    assert ((measured["b"] - spheres["b"]).abs() < 4 * spheres["b"] / (2 * count) ** 0.5).all()
    assert measured["dice"].min() > 0.99


def test_what_is_no_ball_has_a_lower_dice():
    position = torch.arange(64) + 0.5
    x, y, z = torch.meshgrid(position, position, position, indexing="ij")
    cube = ((x - 32).abs() < 12) & ((y - 32).abs() < 12) & ((z - 32).abs() < 12)
    ball = (x - 32) ** 2 + (y - 32) ** 2 + (z - 32) ** 2 <= 20**2
    half = ball & (x < 32)
    ellipsoid = ((x - 32) / 1.25) ** 2 + (y - 32) ** 2 + (z - 32) ** 2 <= 18**2
    volumes = torch.stack([cube, ball, half, ellipsoid])[:, None].float()
    dice = measure_spheres(volumes)["dice"].tolist()
    assert dice[1] > 0.99
    assert max(dice[0], dice[2], dice[3]) < 0.97


def test_an_empty_volume_has_no_parameters():
    measured = measure_spheres(torch.zeros(1, 1, 16, 16, 16))
    assert measured["r"].item() == 0
    assert measured["dice"].item() == 0
    assert measured["a"].isnan().all() and measured["cx"].isnan().all()


def test_batches_are_joined_in_order(spheres):
    whole = measure_spheres(spheres["image"])
    parts = concatenate([measure_spheres(batch) for batch in spheres["image"].split(30)])
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values.numpy())


def test_real_spheres_follow_the_law_and_wrong_ones_do_not():
    rng = np.random.default_rng(0)
    law, n = SphereLaw(), 1000
    r = rng.uniform(16, 32, n)
    centre = {name: r + rng.uniform(0, 1, n) * (64 - 2 * r) for name in ("cx", "cy", "cz")}
    true = {"r": r, **centre, "a": rng.uniform(-0.5, 0.5, n), "b": rng.uniform(0.5, 1.5, n)}
    comparison = compare_with_law(true, law)
    # six tests on one fixed seed at the level 0.001
    assert all(row["p_value"] > 0.001 for row in comparison.values())
    assert comparison["b"]["law_mean"] == pytest.approx(1.0)
    wrong = compare_with_law({**true, "b": 0.9 * true["b"], "a": np.zeros(n)}, law)
    assert wrong["a"]["ks"] > 0.4
    assert wrong["b"]["p_value"] < 0.001
    assert wrong["r"] == comparison["r"]


def test_volumes_without_a_measure_are_left_out():
    measured = {name: np.array([np.nan, np.nan]) for name in ("r", "cx", "cy", "cz", "a", "b")}
    assert compare_with_law(measured, SphereLaw()) == {}
