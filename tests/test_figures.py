"""The pictures' files."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from scripts.data.spheres import SphereDataset, SphereLaw
from scripts.evaluation.figures import plot_fidelity
from scripts.evaluation.measurement import measure_dataset
from scripts.evaluation.slices import save_figure


def test_small_file(tmp_path):
    """A picture of noise takes little more than half of what matplotlib writes, and keeps every grey value."""
    figure = Figure(figsize=(4, 4))
    noise = np.random.default_rng(0).normal(size=(64, 64))
    figure.subplots().imshow(noise, cmap="gray", vmin=-3, vmax=3)
    figure.savefig(tmp_path / "large.png")
    save_figure(figure, tmp_path / "folder" / "small.png")
    large, small = (Image.open(path) for path in (tmp_path / "large.png", tmp_path / "folder" / "small.png"))
    assert np.array_equal(np.asarray(small.convert("RGB")), np.asarray(large.convert("RGB")))
    assert (tmp_path / "folder" / "small.png").stat().st_size < 0.6 * (tmp_path / "large.png").stat().st_size


def test_figure_of_fixed_law(tmp_path):
    """What the law fixes has no histogram and no quantiles; the others have."""
    law = SphereLaw(size=32, r_min=8, r_max=16, a_min=0.25, a_max=0.25)
    volumes = SphereDataset(8, law)
    plot_fidelity(measure_dataset(volumes), volumes, law, tmp_path / "fidelity.png")
    pixels = np.asarray(Image.open(tmp_path / "fidelity.png").convert("RGB")).astype(int)
    above = pixels[: len(pixels) // 3]
    assert (np.ptp(above, axis=2) > 60).mean() > 0.002  # coloured lines


def test_colours_apart(tmp_path):
    """Lines over noise keep the colours that tell them apart."""
    figure = Figure(figsize=(8, 4))
    left, right = figure.subplots(1, 2)
    left.imshow(np.random.default_rng(0).normal(size=(64, 64)), cmap="gray")
    for i in range(6):
        right.plot([0, 1], [i, i], linewidth=1.2)
    figure.savefig(tmp_path / "large.png")
    save_figure(figure, tmp_path / "small.png")
    large, small = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int) for name in ("large", "small")
    )
    coloured = np.ptp(large, axis=2) > 60
    assert np.abs(small - large)[coloured].max() < 30
