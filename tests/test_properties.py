"""Whatever the law, the seed and the index: what a sphere is, and what is measured of it."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.checks import SettingError
from scripts.data.spheres import STREAMS, SphereDataset, SphereLaw
from scripts.evaluation.measurement import measure_spheres

# the same examples in every run
repeatable = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)
numbers = st.floats(-100, 100, allow_nan=False, width=32)


@st.composite
def laws(draw, smallest=2, largest=24, least=0.01):
    """Admissible laws, degenerate ranges included."""
    size = draw(st.integers(smallest, largest))
    r_min, r_max = sorted(draw(st.lists(st.floats(least, size / 2), min_size=2, max_size=2)))
    a_min, a_max = sorted(draw(st.lists(numbers, min_size=2, max_size=2)))
    b_min, b_max = sorted(draw(st.lists(st.floats(0.01, 100), min_size=2, max_size=2)))
    return SphereLaw(size, r_min, r_max, a_min, a_max, b_min, b_max)


@repeatable
@given(laws(), seeds, st.integers(0, 10**6), st.sampled_from(STREAMS))
def test_item_of_any_law(law, seed, index, stream):
    """The parameters keep the law, and the ball lies wholly inside the grid and is all there is."""
    item = SphereDataset(index + 1, law, seed, stream, signal=True)[index]
    r, c, a, b = (item[name].numpy() for name in "rcab")
    assert law.r_min <= r <= law.r_max and law.a_min <= a <= law.a_max and law.b_min <= b <= law.b_max
    assert (c - r >= -1e-9).all() and (c + r <= law.size + 1e-9).all()
    image, signal = item["image"][0].numpy(), item["signal"][0].numpy()
    assert image.shape == (law.size,) * 3 and image.dtype == np.float32 and np.isfinite(image).all()
    position = np.arange(law.size) + 0.5
    x, y, z = (axis - centre for axis, centre in zip(np.meshgrid(*[position] * 3, indexing="ij"), c, strict=True))
    square = x**2 + y**2 + z**2
    # a voxel at the very surface may fall on either side by rounding
    inside, outside = square < r**2 * (1 - 1e-9), square > r**2 * (1 + 1e-9)
    assert (image[outside] == 0).all() and (signal[outside] == 0).all()
    assert (image[inside] != 0).all() and (signal[inside] == np.float32(a)).all()


@repeatable
@given(laws(), seeds, st.lists(st.integers(0, 50), min_size=1, max_size=5), st.sampled_from(STREAMS))
def test_item_in_any_order(law, seed, order, stream):
    """An item is the same whatever was read before it, and however many there are."""
    dataset = SphereDataset(51, law, seed, stream)
    read = {index: dataset[index] for index in order}
    for index, item in read.items():
        alone = SphereDataset(index + 1, law, seed, stream)[index]
        assert all(torch.equal(item[name], alone[name]) for name in alone)
        assert torch.equal(dataset[index - 51]["image"], alone["image"])


@repeatable
@given(
    st.sampled_from(["size", "r_min", "r_max", "a_min", "a_max", "b_min", "b_max"]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), "1", None, True, [1]]),
)
def test_no_number_in_law(name, value):
    with pytest.raises(SettingError, match=f"^{name}="):
        SphereLaw(**{name: value})


@settings(repeatable, max_examples=25)
@given(laws(smallest=24, largest=40, least=6.0), seeds)
def test_measurement_of_any_sphere(law, seed):
    """Radius and centre within 0.3 voxels; mean and deviation within six standard errors: one in 10^9."""
    item = SphereDataset(1, law, seed)[0]
    measured = {name: float(value) for name, value in measure_spheres(item["image"][None]).items()}
    assert measured["r"] == pytest.approx(float(item["r"]), abs=0.3)
    assert [measured[f"c{axis}"] for axis in "xyz"] == pytest.approx(item["c"].tolist(), abs=0.3)
    a, b, voxels = float(item["a"]), float(item["b"]), measured["voxels"]
    # float32 sums of values of size |a| + b add a few units of 10^-6
    rounding = 1e-4 * (abs(a) + b)
    assert measured["a"] == pytest.approx(a, abs=6 * b / voxels**0.5 + rounding)
    assert measured["b"] == pytest.approx(b, abs=6 * b / (2 * voxels) ** 0.5 + rounding)
    assert measured["dice"] > 0.97 and measured["components"] == 1 and measured["background"] == 0
