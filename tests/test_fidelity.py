"""The instrument: real spheres pass every line at the stated error rates, each wrong generator fails the right one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import read_json, run_workflow
from monai.transforms import GaussianSmooth
from torch.utils.data import DataLoader

from scripts.data.spheres import SphereDataset, SphereLaw
from scripts.evaluation.classifier import classify_two_samples
from scripts.evaluation.diversity import score_copies, score_diversity
from scripts.evaluation.fidelity import score_parameters, standardise
from scripts.evaluation.lines import Line
from scripts.evaluation.measurement import measure_dataset
from scripts.evaluation.store import VolumeStore
from scripts.evaluation.table import format_table

LAW = SphereLaw()
# An eighth of the voxels, and of the time, for what takes hundreds of volumes.
HALF = SphereLaw(size=32, r_min=8, r_max=16)


class Ellipsoids(SphereDataset):
    """Spheres stretched along z by a tenth, of the same volume."""

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        sphere = self.law.draw_parameters(rng)
        axes = sphere["r"] * np.array([1, 1, 1.1]) / 1.1 ** (1 / 3)
        offsets = [(np.arange(self.law.size) + 0.5 - c) / axis for c, axis in zip(sphere["c"], axes, strict=True)]
        x, y, z = np.meshgrid(*offsets, indexing="ij")
        values = rng.normal(sphere["a"], sphere["b"], x.shape)
        return {"image": torch.from_numpy(np.where(x**2 + y**2 + z**2 <= 1, values, 0.0)).float()[None]}


def shift_a_voxel(item):
    image = torch.zeros_like(item["image"])
    image[:, 1:] = item["image"][:, :-1]
    return {"image": image}


def smooth_texture(item):
    return {"image": GaussianSmooth(sigma=0.5)(item["image"]) * (item["image"] != 0)}


def fade_at_the_rim(item):
    """Take a fifth of the mean away from the outer half of a ball."""
    position = torch.arange(item["image"].shape[-1]) + 0.5
    x, y, z = torch.meshgrid(*(position - c for c in item["c"].tolist()), indexing="ij")
    outer = ((x**2 + y**2 + z**2).sqrt() > item["r"] / 2 ** (1 / 3)) & (item["image"] != 0)
    return {"image": item["image"] - (0.2 * item["a"] * outer).float()}


WRONG = {
    "radius law too narrow": ("ks_r", lambda: SphereDataset(500, replace(HALF, r_min=9, r_max=15))),
    "a fixed at 0": ("ks_a", lambda: SphereDataset(500, replace(HALF, a_min=0, a_max=0))),
    "b a tenth too small": ("ks_b", lambda: SphereDataset(500, replace(HALF, b_min=0.45, b_max=1.35))),
    "centre a voxel off": ("ks_cx", lambda: SphereDataset(500, HALF, transform=shift_a_voxel)),
    "smoothed texture": ("autocorrelation_x", lambda: SphereDataset(500, HALF, transform=smooth_texture)),
    "mean fades at the rim": ("rim_fade", lambda: SphereDataset(500, HALF, transform=fade_at_the_rim)),
    "ellipsoids of axes 1 to 1.1": ("valid", lambda: Ellipsoids(500, HALF)),
}


def failed(lines):
    return {name for name, line in lines.items() if not line.ok}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_generator_fails(name):
    line, make = WRONG[name]
    lines = score_parameters(measure_dataset(make()), HALF)
    assert line in failed(lines)
    # and what is right about it passes: the other marginals, within their error rate
    untouched = {"ks_r", "ks_a", "ks_b", "ks_cy"} - {line}
    if name != "smoothed texture":  # which lowers b too
        assert not failed(lines) & untouched
        assert not failed(lines) & {"kurtosis", "autocorrelation_y", "background"}


def test_real_spheres_pass():
    lines = score_parameters(measure_dataset(SphereDataset(300, HALF, seed=11, stream="baseline")), HALF)
    assert failed(lines) == set()
    assert lines["valid"].value == 1.0


@pytest.mark.parametrize("n", [50, 200])
def test_limits_hold_error_rate(n, monkeypatch):
    # True parameters of real spheres: six statistics at the error rate each, and the largest of 15 correlations at most
    # 15 times that. A rate of 0.02, not 0.002, lets 300 sets tell.
    monkeypatch.setattr("scripts.evaluation.fidelity.ERROR_RATE", 0.02)
    rng = np.random.default_rng(0)
    counts = {"ks": 0, "rank_correlation": 0}
    for _ in range(300):
        r = rng.uniform(16, 32, n)
        centre = {name: r + rng.uniform(0, 1, n) * (64 - 2 * r) for name in ("cx", "cy", "cz")}
        measured = {"r": r, **centre, "a": rng.uniform(-0.5, 0.5, n), "b": rng.uniform(0.5, 1.5, n)}
        ones = dict.fromkeys(("dice", "components", "voxels"), np.ones(n))
        texture = ("kurtosis", "normal_ks", "rim_mean", "rim_std", "background")
        zeros = dict.fromkeys((*texture, *(f"autocorrelation_{axis}" for axis in "xyz")), np.zeros(n))
        beyond = failed(score_parameters({**measured, **ones, **zeros}, LAW))
        counts["ks"] += sum(name.startswith("ks_") for name in beyond)
        counts["rank_correlation"] += "rank_correlation" in beyond
    # 1,800 statistics, 36 expected to be beyond: outside these bounds with probability 1e-3
    assert 18 <= counts["ks"] <= 57
    # 15 pairs that are nearly independent: 1 - 0.98^15, 78 of 300 expected, with a standard error of 8
    assert 50 <= counts["rank_correlation"] <= 105


def test_limits_by_count():
    """Limits are what a perfect generator exceeds once in 500 times; those of the values in the balls have a least."""
    measured = measure_dataset(SphereDataset(20, HALF))
    few = score_parameters({name: values[:2] for name, values in measured.items()}, HALF)
    many = score_parameters({name: np.tile(values, 500) for name, values in measured.items()}, HALF)
    assert many["ks_r"].limit == pytest.approx(0.0186, abs=5e-5)
    assert many["rank_correlation"].limit == pytest.approx(0.0309, abs=5e-5)
    assert many["rim_mean"].limit == many["rim_fade"].limit == 0.02
    for name in ("ks_r", "rank_correlation", "kurtosis", "autocorrelation_x", "rim_mean", "rim_std", "rim_fade"):
        assert few[name].limit > many[name].limit, name


def test_lines_of_fixed_law():
    """What the law fixes is left out, and the rest is still tested."""
    fixed = SphereLaw(a_min=0.25, a_max=0.25)
    lines = score_parameters(measure_dataset(SphereDataset(8, fixed)), fixed)
    assert "ks_a" not in lines and {"ks_r", "ks_b", "rank_correlation", "kurtosis"} <= set(lines)
    one = score_parameters(measure_dataset(SphereDataset(1, LAW)), LAW)
    assert one["ks_r"].count == 1 and "rank_correlation" not in one
    assert {"kurtosis", "rim_mean", "background"} <= set(one)


def test_lines_without_non_finite():
    """A volume that is not finite counts as not valid, and is left out of the rest."""
    broken = [dict(item) for item in (SphereDataset(8, LAW)[i] for i in range(8))]
    broken[0]["image"][broken[0]["image"] != 0] = torch.nan
    lines = score_parameters(measure_dataset(broken), LAW)
    assert lines["valid"].value == 7 / 8 and lines["valid"].reasons == {"not finite": 1}
    assert lines["ks_a"].count == 7 and abs(lines["kurtosis"].value) < 0.05
    assert all(np.isfinite(line.value) for line in lines.values())
    reference = SphereDataset(8, LAW, stream="reference")
    assert np.isfinite(score_diversity(broken, reference, data_range=10.0)["mmd"].value)
    assert np.isfinite(classify_two_samples(broken, reference, epochs=1)["classifier"].value)


def test_lines_with_odd_volumes():
    """A volume that is NaN everywhere and a ball of one value leave every line a number."""
    odd = [dict(item) for item in (SphereDataset(8, LAW)[i] for i in range(8))]
    odd[0]["image"][:] = torch.nan
    odd[1]["image"] = (odd[1]["image"] != 0).float()
    lines = score_parameters(measure_dataset(odd), LAW)
    assert all(np.isfinite(line.value) for line in lines.values()) and lines["background"].value == 0


def test_lines_without_spheres():
    """A set without a sphere is scored, and the reasons are counted."""
    volumes = torch.zeros(3, 1, 64, 64, 64)
    volumes[2] = 1.0
    lines = score_parameters(measure_dataset([{"image": volume} for volume in volumes]), LAW)
    assert lines["valid"].reasons == {"empty": 2, "no background": 1}
    assert failed(lines) >= {"valid"}


def test_standardise_to_unit_interval():
    measured = {"r": np.array([24.0]), "cx": np.array([24.0]), "cy": np.array([32.0]), "cz": np.array([40.0])}
    uniform = standardise({**measured, "a": np.array([0.25]), "b": np.array([0.5])}, LAW)
    assert {name: values.item() for name, values in uniform.items()} == pytest.approx(
        {"r": 0.5, "cx": 0.0, "cy": 0.5, "cz": 1.0, "a": 0.75, "b": 0.0}
    )


def test_diversity_of_collapse():
    real, reference = (SphereDataset(12, LAW, stream=stream) for stream in ("baseline", "reference"))
    collapsed = [{"image": real[0]["image"]}] * 12
    lines = score_diversity(real, reference, data_range=10.0)
    wrong = score_diversity(collapsed, reference, data_range=10.0)
    assert wrong["ms_ssim"].value == pytest.approx(1.0, abs=1e-4)
    assert lines["ms_ssim"].value < 0.8
    assert wrong["mmd"].value > 5 * abs(lines["mmd"].value)


def test_copies_are_found():
    """Copies of training volumes are nearer to them than held-out ones; fresh volumes are not."""
    training, held_out, fresh = (SphereDataset(40, HALF, stream=stream) for stream in ("train", "test", "baseline"))
    alike = score_copies(fresh, held_out, training)["copies"]
    # 2.9 standard errors of 40 against 40; the limit is exceeded once in 500
    assert alike.ok and alike.limit == pytest.approx(0.687, abs=1e-3)
    rng = np.random.default_rng(0)
    noise = [0.1 * torch.from_numpy(rng.standard_normal((1, 32, 32, 32))).float() for _ in range(40)]
    copies = [{"image": training[i]["image"] + noise[i]} for i in range(40)]
    found = score_copies(copies, held_out, training)["copies"]
    assert found.value > 0.95 and not found.ok and found.p_value < 1e-9 and found.count == 40
    # half of them copies: 0.5 + 0.5 / 2
    mixed = score_copies([*copies[:20], *(fresh[i] for i in range(20))], held_out, training)["copies"]
    assert 0.65 < mixed.value < 0.85
    assert score_copies([], held_out, training) == {}


def test_stored_volumes_in_workers():
    """What an evaluator generated comes back bit for bit, in worker processes that are no forks too."""
    store, volumes = VolumeStore(4), torch.stack([SphereDataset(4, HALF)[i]["image"] for i in range(4)])
    store.start()
    store.add(volumes)
    loader = DataLoader(store, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    (batch,) = loader
    assert torch.equal(batch["image"], volumes)
    assert torch.equal(store[3]["image"], volumes[3])


def test_classifier_two_samples():
    """The classifier tells sets apart only where they differ."""
    real, same = SphereDataset(60, LAW, stream="baseline"), SphereDataset(60, LAW, stream="reference")
    other = SphereDataset(60, LAW, stream="test", transform=smooth_texture)
    before = torch.random.get_rng_state()
    # 60 tosses of a fair coin: 0.25 to 0.75 but for a probability of 1e-4
    alike = classify_two_samples(real, same, epochs=10)["classifier"]
    assert 0.25 < alike.value < 0.75 and alike.low < 0.5 < alike.high and alike.ok
    apart = classify_two_samples(other, same, epochs=10)["classifier"]
    assert apart.value > 0.9 and not apart.ok and apart.count == 60
    assert torch.equal(before, torch.random.get_rng_state())
    assert classify_two_samples([real[0]], same) == {}


def test_table_beside_real():
    lines = {
        "ks_r": Line(0.1, p_value=0.004, limit=0.06),
        "mmd": Line(2.0),
        "classifier": Line(0.55, low=0.51, high=0.59, limit=0.65),
    }
    rows = format_table(lines, {"ks_r": Line(0.03)}).splitlines()
    assert rows[1].split() == ["KS", "of", "r", "0.1000", "0.0300", "<=", "0.0600", "FAILS", "p", "=", "0.004"]
    assert rows[2].split()[-1] == "2.0000"
    assert rows[3].endswith("ok     95% interval 0.510 to 0.590")


def test_evaluate_weights(small_weights, tmp_path):
    run_workflow("evaluate", "smoke", image_size=32, output_dir=str(tmp_path), **small_weights)
    result = read_json(tmp_path / "fidelity.json")
    assert result["settings"]["num_samples"] == 4
    assert set(result["reconstruction"]) >= {"ssim", "ssim_oracle", "mse_ratio", "dice", "a_rmse", "b_rmse"}
    assert set(result["real"]) >= {"valid", "ks_r", "rank_correlation", "kurtosis", "mmd", "ms_ssim", "classifier"}
    assert result["failed"] == [name for name, line in result["volumes"].items() if not line.get("ok", True)]
    for name in ("fidelity.png", "reconstructions.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_evaluate_folder(folder, tmp_path):
    """A folder of volumes is scored without any weights."""
    workflow = run_workflow(
        "evaluate",
        "smoke",
        output_dir=str(tmp_path),
        dataset_dir=str(folder),
        autoencoder_path="nowhere.pt",
        model_path="nowhere.pt",
    )
    assert workflow.parser.get_parsed_content("model_file") is None
    result = read_json(tmp_path / "fidelity.json")
    assert result["settings"]["num_samples"] == 6
    assert result["reconstruction"] == {}
    direct = score_parameters(measure_dataset(SphereDataset(6, LAW, seed=3, stream="test")), LAW)
    assert result["volumes"]["valid"]["value"] == 1.0
    assert result["volumes"]["ks_b"]["value"] == pytest.approx(direct["ks_b"].value, abs=1e-4)
