"""The benchmark's own parts: references that do the same work, and figures that mean what the table says."""

import json
import sys

import numpy as np
import pytest
import torch
from bench_growth import fit_exponent
from bench_spheres import draw_batch
from measure import BUNDLE, Row, load_config, run_command, time_side_by_side
from recipes import RECIPES, RESULTS, format_recipes
from reference_autoencoder import show
from reference_spheres import draw_sphere
from run import SECTIONS, format_row, main, plot_rows
from scaling import INFINIBAND, PAGE, all_reduce, fill
from steps import measure_steps

from scripts.data.spheres import SphereLaw
from scripts.evaluation.measurement import measure_spheres


def draw_one_by_one(count: int) -> torch.Tensor:
    return torch.stack([draw_sphere() for _ in range(count)])


def draw_at_once(count: int) -> torch.Tensor:
    return draw_batch(count, 64, torch.device("cpu"))


@pytest.mark.parametrize("draw", [draw_one_by_one, draw_at_once])
def test_references_draw_the_law(draw):
    torch.manual_seed(0)
    law = SphereLaw()
    measured = {name: values.numpy() for name, values in measure_spheres(draw(24)).items()}
    assert (measured["dice"] > 0.99).all()
    for name in ("r", "a", "b"):
        low, high = getattr(law, f"{name}_min"), getattr(law, f"{name}_max")
        assert (low - 0.02 <= measured[name]).all() and (measured[name] <= high + 0.02).all(), name
        assert np.ptp(measured[name]) > 0.5 * (high - low), name


def test_reference_shows_same_channels():
    autoencoder = load_config("train_autoencoder", initialize=False).get_parsed_content("network")
    volumes = draw_at_once(2)
    shown = torch.nn.functional.avg_pool3d(show(volumes), autoencoder.block_size)
    torch.testing.assert_close(autoencoder._show(volumes), shown)


def test_row_ratio_share_misses():
    row = Row("s", "what", "s", 2.0, reference=9.0, limit=1.0, least_ratio=4, most=1.5)
    assert row.ratio == 4.5
    assert row.share == 0.5
    assert row.misses == ["2 s instead of 1.5"]
    assert "MISSES" in format_row(row)
    assert Row("s", "what", "s", 2.0, reference=9.0, least_ratio=5).misses == ["4.5 times instead of 5"]
    assert Row("s", "what", "s", 2.0, most=2.0).misses == []


def test_exponent_of_power():
    assert fit_exponent([(n, 0.3 * n**2.5) for n in (32, 64, 96)]) == pytest.approx(2.5)


def test_timing_after_warm_up():
    """Each function is called once to warm up and then once a round, in turns."""
    calls = []
    seconds = time_side_by_side({"one": lambda: calls.append(1), "two": lambda: calls.append(2)}, rounds=3)
    assert calls == [1, 2] * 4
    assert set(seconds) == {"one", "two"}


def test_command_time_and_memory():
    """The peak of memory is the child's own, without that of this process."""
    ballast = np.ones(2**27, dtype=np.uint8)  # 134 MB that the child's peak must not count
    code = "import time; print('started', flush=True); time.sleep(0.3); print('done', flush=True); time.sleep(60)"
    output, seconds, memory = run_command([sys.executable, "-c", code], until="done")
    assert output.split() == ["started", "done"]
    assert 0.3 < seconds < 30
    assert 0.002 < memory < 0.1 < ballast.nbytes / 1e9
    with pytest.raises(RuntimeError, match="no such luck"):
        run_command([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_recipes_match_results():
    """The page shows the results in the repository, and these are of all recipes."""
    results = json.loads(RESULTS.read_text())
    assert list(results) == list(RECIPES)
    assert format_recipes(results) in (BUNDLE / "docs" / "experiments.md").read_text()


def test_section_and_figure(monkeypatch, tmp_path, capsys):
    row = Row("s", "fast", "s", 1.0, reference=5.0, least_ratio=4)
    curve = Row("growth", "slow", "exponent", 1.0, points=[(1, 1.0), (2, 2.0)])
    plot_rows([row, curve], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    monkeypatch.setitem(SECTIONS, "spheres", lambda: [row])
    monkeypatch.setattr("run.RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "spheres"])
    main()
    assert "5.0" in capsys.readouterr().out
    assert (tmp_path / "benchmark.json").exists()


def test_simulated_tables():
    """The page's tables are those that the script makes of the configs as they are."""
    assert fill(PAGE.read_text()) == PAGE.read_text()


def test_ring_of_gpus():
    """One GPU sends nothing; of a long message many send almost twice its bytes each, whatever their number."""
    assert all_reduce(10**6, 1) == 0 < all_reduce(10**6, 8) < all_reduce(10**6, 64) < all_reduce(10**6, 512)
    assert all_reduce(10**12, 512) == pytest.approx(2e12 / INFINIBAND, rel=0.01)


def test_steps_are_measured():
    settings = {"image_size": 32, "train_batch_size": 4, "accumulation_steps": 2, "device": "cpu"}
    seconds, _ = measure_steps("train_autoencoder", "smoke", steps=3, **settings)
    assert 0 < seconds < 60
