"""The law of the data: what every figure of this project rests on."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from scripts.checks import SettingError
from scripts.data.spheres import STREAMS, SphereDataset, SphereLaw

SIZE, COUNT = 64, 2000
# Each of the eight distributions below is tested once, on one fixed seed, at this level: if the code is right, a change
# of the random numbers fails one of them in 0.8% of cases.
LEVEL = 1e-3


@pytest.fixture(scope="module")
def items():
    return [SphereDataset(200, SphereLaw(), seed=11)[i] for i in range(200)]


@pytest.fixture(scope="module")
def table():
    """True parameters of 2,000 volumes, and what the values inside each look like."""
    rng = np.random.default_rng(0)
    columns = {name: [] for name in ("r", "c", "a", "b", "count", "mean", "std", "few")}
    dataset = SphereDataset(COUNT, SphereLaw(), seed=11)
    for i in range(COUNT):
        item = dataset[i]
        values = item["image"][item["image"] != 0].double().numpy()
        row = {name: item[name].numpy() for name in ("r", "c", "a", "b")}
        row.update(count=len(values), mean=values.mean(), std=values.std(ddof=1), few=rng.choice(values, 50))
        for name, value in row.items():
            columns[name].append(value)
    return {name: np.stack(values) for name, values in columns.items()}


def test_item_keys_and_shapes(items):
    item = items[0]
    assert item["image"].shape == (1, SIZE, SIZE, SIZE)
    assert item["image"].dtype == torch.float32
    assert item["c"].shape == (3,)
    assert {"image", "r", "c", "a", "b"} == set(item)


def test_bounds_are_strict(table):
    r, c, a, b = (table[name] for name in ("r", "c", "a", "b"))
    assert r.min() > 16 and r.max() < 32
    assert (c > r[:, None]).all() and (c < SIZE - r[:, None]).all()
    assert a.min() > -0.5 and a.max() < 0.5
    assert b.min() > 0.5 and b.max() < 1.5


@pytest.mark.parametrize("name", ["r", "cx", "cy", "cz", "a", "b"])
def test_parameters_are_uniform(table, name):
    low, high = {"r": (16, 32), "a": (-0.5, 0.5), "b": (0.5, 1.5)}.get(name, (0, 1))
    if name.startswith("c"):
        values = (table["c"][:, "xyz".index(name[1])] - table["r"]) / (SIZE - 2 * table["r"])
    else:
        values = table[name]
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > LEVEL


def test_ball_support(items):
    """The ball is the voxels whose centre is at most r away."""
    # the textbook way, over the whole grid
    position = np.arange(SIZE) + 0.5
    x, y, z = np.meshgrid(position, position, position, indexing="ij")
    for item in items:
        cx, cy, cz = item["c"].numpy()
        inside = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= item["r"].item() ** 2
        volume = item["image"][0].numpy()
        assert (volume[~inside] == 0).all()
        # a draw is exactly 0 with probability 1e-8 or so
        assert (volume[inside] != 0).all()


def test_values_are_normal(table):
    """Values inside are normal with the true mean and deviation."""
    a, b, n = table["a"], table["b"], table["count"]
    # five standard errors: one of 4,000 fails by chance with probability 0.002
    assert (np.abs(table["mean"] - a) < 5 * b / np.sqrt(n)).all()
    assert (np.abs(table["std"] - b) < 5 * b / np.sqrt(2 * n)).all()
    standardised = (table["few"] - a[:, None]) / b[:, None]
    assert stats.kstest(standardised.ravel(), "norm").pvalue > LEVEL


def test_voxels_are_independent(items):
    """Voxels are independent of their neighbours along each axis."""
    correlations = []
    for item in items[:100]:
        volume = item["image"][0]
        inside = volume != 0
        noise = torch.where(inside, (volume - item["a"]) / item["b"], 0.0)
        for axis in range(3):
            pairs = inside.roll(1, axis) & inside
            correlations.append(((noise * noise.roll(1, axis))[pairs].sum() / pairs.sum() ** 0.5).item())
    # each is standard normal under independence
    assert stats.kstest(correlations, "norm").pvalue > LEVEL


@pytest.mark.parametrize("workers", [1, 3])
def test_volumes_with_workers(workers):
    """Worker processes do not change the volumes."""
    dataset = SphereDataset(12, SphereLaw(), seed=3)
    alone = torch.cat([batch["image"] for batch in DataLoader(dataset, batch_size=4)])
    shared = torch.cat([batch["image"] for batch in DataLoader(dataset, batch_size=4, num_workers=workers)])
    assert torch.equal(alone, shared)


def test_volumes_by_seed_and_index():
    """Order, length and global seed do not change a volume."""
    expected = SphereDataset(10, SphereLaw(), seed=3)[7]["image"]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  # the global state is what must not matter
    other = SphereDataset(100, SphereLaw(), seed=3)
    other[50]
    assert torch.equal(other[7]["image"], expected)


def test_streams_and_seeds_disjoint():
    radii = [
        item["r"].item()
        for seed in (0, 1)
        for stream in STREAMS
        for item in SphereDataset(200, SphereLaw(), seed, stream)
    ]
    assert len(set(radii)) == len(radii)


def test_signal():
    """The signal is the mean inside and 0 outside."""
    item = SphereDataset(4, SphereLaw(), signal=True)[2]
    inside = item["image"] != 0
    assert (item["signal"][inside] == item["a"].float()).all()
    assert (item["signal"][~inside] == 0).all()


def test_transform_gets_item():
    dataset = SphereDataset(2, SphereLaw(), transform=lambda item: {"sum": item["image"].sum()})
    assert set(dataset[0]) == {"sum"}


def test_another_size():
    item = SphereDataset(1, SphereLaw(size=24, r_min=4, r_max=12))[0]
    assert item["image"].shape == (1, 24, 24, 24)


def test_dataset_end():
    with pytest.raises(IndexError):
        SphereDataset(4, SphereLaw())[4]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"r_max": 33}, "r_max"),
        ({"r_min": 20, "r_max": 18}, "r_min"),
        ({"r_min": 0}, "r_min"),
        ({"r_min": float("nan")}, "r_min"),
        ({"r_max": "wide"}, "r_max"),
        ({"a_min": 1, "a_max": 0}, "a_min"),
        ({"b_min": -0.1}, "b_min"),
        ({"b_min": 2.0}, "b_min"),
        ({"size": 64.0}, "size"),
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"size": 32}, "r_max"),
    ],
)
def test_law_out_of_range(parameters, name):
    with pytest.raises(SettingError, match=f"^{name}="):
        SphereLaw(**parameters)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"length": 0}, "length"), ({"length": 2.0}, "length"), ({"seed": -1}, "seed"), ({"stream": "tset"}, "stream")],
)
def test_dataset_out_of_range(arguments, name):
    with pytest.raises(SettingError, match=f"^{name}="):
        SphereDataset(**{"length": 1, "law": SphereLaw(), **arguments})
