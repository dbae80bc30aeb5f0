"""Conditional generation: what is asked for reaches the network, what came stands beside it, and mistakes are told."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from commands import read_points
from conftest import BUNDLE, SMALL, find_mistake, make_workflow, read_json, run_process, run_workflow
from documents import read_blocks
from monai.networks.schedulers import RFlowScheduler
from PIL import Image

from scripts import distributed
from scripts.checks import SettingError
from scripts.data.conditions import ConditionedVolumes, find_ranges
from scripts.data.requests import read_requests
from scripts.data.spheres import PARAMETERS, SphereDataset, SphereLaw
from scripts.evaluation.control import score_control
from scripts.evaluation.measurement import measure_dataset
from scripts.evaluation.sweep import make_sweep
from scripts.model.diffusion import VelocityPrepareBatch
from scripts.model.tokens import ConditionTokens, read_names

LAW = SphereLaw()
RANGES = torch.tensor(find_ranges(PARAMETERS, LAW), dtype=torch.float64)
NAN = float("nan")
SETTINGS = {"image_size": 32, "precision": "float32"}
RELEASED = {"model_path": str(BUNDLE / "models" / "model_conditional.pt")}


@pytest.fixture(scope="module")
def generate(conditional_weights, tmp_path_factory):
    """Volumes of the conditional weights: the folder that inference wrote."""

    def run(**overrides) -> Path:
        folder = tmp_path_factory.mktemp("inference")
        settings = {**SETTINGS, "model_path": conditional_weights["model_path"], "output_dir": str(folder)}
        run_workflow("inference", "conditional", "smoke", **settings, **overrides)
        return folder

    return run


@pytest.fixture(scope="module")
def generator(conditional_weights):
    workflow = make_workflow(
        "inference", "conditional", "smoke", **SETTINGS, model_path=conditional_weights["model_path"]
    )
    return workflow.parser.get_parsed_content("network_def").eval()


def volumes_in(folder: Path) -> np.ndarray:
    return np.stack([nibabel.load(path).get_fdata(dtype=np.float32) for path in sorted(folder.glob("*.nii.gz"))])


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open() as file:
        return list(csv.DictReader(file))


# Tokens


def test_token_of_each():
    """A token is that of one condition and its value, and none says anything where the value is free."""
    tokens = ConditionTokens(PARAMETERS, RANGES)
    sphere = torch.tensor([[20.0, 30.0, 33.0, 40.0, 0.3, 1.0]])
    whole, nothing = tokens(sphere)[0], tokens(tokens.free(1))[0]
    assert whole.shape == (6, tokens.dimension) and (nothing == ConditionTokens.FREE).all()
    assert torch.linalg.matrix_rank(whole) == 6
    for i in range(6):
        only, others = torch.full((1, 6), NAN), sphere.clone()
        only[0, i], others[0, i] = sphere[0, i], NAN
        alone, rest = tokens(only)[0], tokens(others)[0]
        # the same token whatever the others are
        assert torch.equal(alone[i], whole[i]) and not torch.equal(alone[i], nothing[i])
        keep = [k for k in range(6) if k != i]
        assert torch.equal(rest[keep], whole[keep]) and torch.equal(rest[i], nothing[i])
    ends = tokens(RANGES.T.float())
    assert (ends[0] - ends[1]).abs().amax(dim=1).min() > 1.9


def test_ranges_of_the_law():
    """The bounds hold for every sphere, and are reached."""
    rng = np.random.default_rng(0)
    drawn = [LAW.draw_parameters(rng) for _ in range(20_000)]
    table = np.array([[item["r"], *item["c"], item["a"], item["b"]] for item in drawn])
    low, high = RANGES.numpy().T
    assert (table >= low).all() and (table <= high).all()
    assert ((table.min(axis=0) - low) / (high - low)).max() < 0.02
    assert ((high - table.max(axis=0)) / (high - low)).max() < 0.02


# Training


def test_every_subset_is_hidden():
    """As many values are known as not: none, all, and every number between equally often, each subset among them."""
    prepare = VelocityPrepareBatch(RFlowScheduler(num_train_timesteps=1000), 1000, tokens=ConditionTokens("rab"))
    known = prepare.hide(torch.zeros(20_000, 3)).isfinite()
    counts = torch.bincount(known.sum(dim=1), minlength=4) / len(known)
    # a standard error of 0.003
    assert (counts - 0.25).abs().max() < 0.015
    assert len(known.unique(dim=0)) == 8
    # what is missing stays so
    assert prepare.hide(torch.full((100, 3), NAN)).isnan().all()


@pytest.mark.parametrize("fixed", [False, True])
def test_hidden_alike_by_several_processes(monkeypatch, fixed):
    """Processes that share a batch hide what one process would; a validation always hides the same."""
    prepare = VelocityPrepareBatch(RFlowScheduler(1000), 1000, fixed=fixed, tokens=ConditionTokens("rab", [(0, 1)] * 3))
    batch = {"image": torch.randn(12, 4, 1, 1, 1), "condition": torch.rand(12, 3), "index": torch.arange(12)}

    def hide(part: slice) -> torch.Tensor:
        torch.manual_seed(0)
        return prepare({key: values[part] for key, values in batch.items()})[3]["condition"]

    whole = hide(slice(None))
    known = whole.ne(0).any(dim=2)
    assert known.any() and not known.all()
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed.idist, "get_rank", lambda rank=rank: rank)
        assert torch.equal(hide(slice(rank, None, 3)), whole[rank::3])


def test_asked_targets_not_averaged():
    """The target of an item that is asked for nothing is averaged over the reference; that of another is its own."""
    scheduler = RFlowScheduler(num_train_timesteps=1000)
    tokens = ConditionTokens("ab", [(0, 1)] * 2)
    reference = torch.randn(16, 4, 1, 1, 1)
    prepare = VelocityPrepareBatch(scheduler, 1000, tokens=tokens, reference=lambda count: reference, reference_size=16)
    images = torch.randn(64, 4, 1, 1, 1)
    _, velocity, _, more = prepare({"image": images, "condition": torch.rand(64, 2)})
    asked = more["condition"].ne(0).any(dim=2).any(dim=1)
    plain = (velocity - (images - more["noise"])).abs().amax(dim=(1, 2, 3, 4))
    assert 0 < asked.sum() < 64
    assert plain[asked].max() < 1e-6 < plain[~asked].median()


def test_unconditional_draws_stay():
    """Without conditions a batch has the noise and timesteps that it had."""
    batch = {"image": torch.randn(8, 4, 1, 1, 1)}
    scheduler = RFlowScheduler(num_train_timesteps=1000)
    torch.manual_seed(3)
    more = VelocityPrepareBatch(scheduler, 1000)(batch)[3]
    torch.manual_seed(3)
    assert torch.equal(more["noise"], torch.randn(8, 4, 1, 1, 1))
    assert set(more) == {"noise", "timesteps"}


def test_parameters_travel_with_latents(small_autoencoder, tmp_path):
    settings = {**SMALL, "autoencoder_path": str(small_autoencoder), "output_dir": str(tmp_path)}
    parser = make_workflow("train_diffusion", "conditional", "smoke", **settings).parser
    latents, spheres = (parser.get_parsed_content(key) for key in ("train#dataset", "train#spheres"))
    for item in latents.__getitems__([5, 2, 7]):
        sphere = spheres[item["index"]]
        expected = torch.stack([sphere["r"], *sphere["c"], sphere["a"], sphere["b"]]).float()
        assert torch.equal(item["condition"], expected)


def test_weights_know_their_conditions(conditional_weights, smoke):
    """Names and ranges are kept with the weights; those of the unconditional model hold none of it."""
    weights, unconditional = torch.load(conditional_weights["model_path"]), torch.load(smoke["model_path"])
    assert read_names(weights) == PARAMETERS and read_names(unconditional) == ()
    assert torch.equal(weights["tokens.ranges"], torch.tensor(find_ranges(PARAMETERS, SphereLaw(32, 8, 16))).double())
    assert not any("tokens" in name or "attn2" in name for name in unconditional)
    curves = read_points(Path(conditional_weights["model_path"]).parent / "tensorboard")
    assert all(np.isfinite(value) for _, _, value in curves if isinstance(value, float))


# Asking


def test_ask_for_all(generate):
    """What was asked stands in the table beside what was measured, and makes another volume."""
    free, asked = generate(), generate(ask={"r": 10, "a": 0.25})
    assert not any("asked" in name for name in read_table(free)[0])
    assert not np.array_equal(volumes_in(free), volumes_in(asked))
    for row in read_table(asked):
        assert (row["r_asked"], row["a_asked"]) == ("10.0", "0.25") and "b_asked" not in row
        for name, value in (("r", 10), ("a", 0.25)):
            measured, difference = float(row[name]), float(row[f"{name}_difference"])
            assert difference == pytest.approx(measured - value, abs=1e-4, nan_ok=True)
    columns = list(read_table(asked)[0])
    assert columns[columns.index("r") + 1 :][:2] == ["r_asked", "r_difference"]
    assert "r_asked" in (asked / "report.html").read_text()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_request_for_each(generate, tmp_path, kind):
    """A row of a table is what its volume is asked for, and that alone."""
    path = tmp_path / f"requests.{kind}"
    if kind == "csv":
        path.write_text("a,r\n0.25,10\n,12\n,\n-0.5,\n,9\n")
    else:
        path.write_text(json.dumps([{"a": 0.25, "r": 10}, {"r": 12}, {"a": None}, {"a": -0.5}, {"r": 9}]))
    folder = generate(requests=str(path))
    asked = [(row["r_asked"], row["a_asked"]) for row in read_table(folder)]
    assert asked == [("10.0", "0.25"), ("12.0", ""), ("", ""), ("", "-0.5")]
    volumes, free = volumes_in(folder), volumes_in(generate())
    assert np.array_equal(volumes[2], free[2]) and not np.array_equal(volumes[0], free[0])
    assert np.array_equal(volumes[0], volumes_in(generate(ask={"r": 10, "a": 0.25}))[0])


def test_changed_table_is_another_run(conditional_weights, tmp_path):
    """Volumes are made anew when what was asked changed, in a file of the same name too."""
    path, output = tmp_path / "requests.csv", tmp_path / "out"
    settings = {
        **SETTINGS,
        "model_path": conditional_weights["model_path"],
        "output_dir": str(output),
        "num_samples": 1,
    }
    found = []
    for r in (10, 14):
        path.write_text(f"r\n{r}\n")
        run_workflow("inference", "conditional", "smoke", **settings, requests=str(path))
        found.append(volumes_in(output))
    assert not np.array_equal(*found) and (output / "earlier_1").exists()


def test_guidance(generator):
    """MONAI's guidance: at 0 it is the volume of which nothing is asked, at 1 none; beyond it does something."""
    noise, texture = torch.randn(2, 32, 1, 1, 1), torch.randn(2, 1, 32, 32, 32)
    asked = torch.tensor([[10.0, 16.0, 16.0, 16.0, 0.3, 1.0]]).expand(2, -1)
    free = generator(noise, texture)
    assert torch.equal(generator(noise, texture, torch.full((2, 6), NAN)), free)
    volumes = {}
    try:
        for generator.guidance in (0.0, 1.0, 3.0):
            volumes[generator.guidance] = generator(noise, texture, asked)
    finally:
        generator.guidance = 1.0

    def differ(first, second):
        return (first - second).abs().mean()

    assert differ(volumes[0.0], free) < 1e-4 * free.abs().mean()
    assert differ(volumes[1.0], free) < differ(volumes[3.0], free)


# Mistakes


WRONG = [
    ({"rr": 20}, "ask#rr=20: no such condition", "did you mean r?"),
    ({"radius_of_it": 20}, "ask#radius_of_it=20: no such condition", "the model knows r, cx, cy, cz, a, b."),
    ({"r": 15}, "ask#r=15: ", "from 16 to 32"),
    ({"b": 2}, "ask#b=2: ", "from 0.5 to 1.5"),
    ({"cx": 50}, "ask#cx=50: ", "from 16 to 48"),
    ({"r": 20, "cy": 17}, "ask#cy=17: ", "from 20 to 44, for a ball of r=20 lies wholly inside the grid of 64"),
]


@pytest.mark.parametrize(("ask", "start", "allowed"), WRONG)
def test_wrong_request(ask, start, allowed):
    with pytest.raises(SettingError) as failure:
        read_requests(PARAMETERS, RANGES, 2, ask=ask, size=64)
    assert str(failure.value).startswith(start) and allowed in str(failure.value)


TABLES = [
    ("r,a\n20,0.1\n", "num_samples=2: must be at most 1"),
    ("r,a\n20,0.1\n20,much\n", "row 2: a='much': must be a number"),
    ("r,a\n20,0.1\n20,0.7\n", "row 2: a=0.7: must be from -0.5 to 0.5"),
    ("r,ab\n20,0.1\n20,0.1\n", "row 1: ab=0.1: no such condition"),
    ("r,cx\n20,20\n30,20\n", "row 2: cx=20.0: must be from 30 to 34"),
    ("r\n20,3\n", "has cells without a name"),
    ("", "it has no rows"),
    ("r\n", "it has no rows"),
    ("\x00\xff", "can't be read"),
]


@pytest.mark.parametrize(("content", "said"), TABLES)
def test_wrong_table(content, said, tmp_path):
    path = tmp_path / "requests.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingError) as failure:
        read_requests(PARAMETERS, RANGES, 2, requests=str(path), size=64)
    assert said in str(failure.value) and str(path) in str(failure.value)


def test_free_row_of_one_column(tmp_path):
    """An empty cell that is the whole line."""
    path = tmp_path / "requests.csv"
    path.write_text("r\n20\n\n30\n")
    requests = read_requests(PARAMETERS, RANGES, 3, requests=str(path))
    assert requests[[0, 2], 0].tolist() == [20, 30] and requests[1].isnan().all()


def test_wrong_json(tmp_path):
    path = tmp_path / "requests.json"
    for content in ("{", "{}", "[1]", "[]", '[{"r": true}]', '[{"r": "20"}, {"r": [1]}]'):
        path.write_text(content)
        with pytest.raises(SettingError, match="requests="):
            read_requests(PARAMETERS, RANGES, 1, requests=str(path))


def test_mistakes_before_any_work(conditional_weights, small_weights, tmp_path):
    """Each is told in one line, and no folder is made."""

    def start(*configs, **overrides):
        settings = {**SETTINGS, "model_path": conditional_weights["model_path"], "output_dir": str(tmp_path / "out")}
        message = find_mistake(lambda: make_workflow(*configs, "smoke", **{**settings, **overrides}))
        assert not (tmp_path / "out").exists()
        return message

    asking = ("inference", "conditional")
    assert start(*asking, ask={"rr": 12}).startswith("ask#rr=12: no such condition")
    assert "from 8 to 16" in start(*asking, ask={"r": 20})
    assert start(*asking, ask={"r": 12, "cx": 9}).startswith("ask#cx=9: must be from 12 to 20")
    assert start(*asking, ask={"r": "big"}).startswith("ask={'r': 'big'}: must be names and numbers")
    assert start(*asking, requests="none.csv").startswith("requests='none.csv': can't be read")
    assert start(*asking, requests="a.csv", ask={"r": 12}).startswith("ask={'r': 12}: must be empty where requests=")
    assert start(*asking, guidance=-1).startswith("guidance=-1: must be a number of at least 0")
    assert start(*asking, conditions=["r", "a"]).startswith("conditions=['r', 'a']: must be ['r', 'cx'")
    # weights, or networks, that know no conditions
    unconditional = {"model_path": small_weights["model_path"]}
    message = start(*asking, ask={"r": 12}, **unconditional)
    assert message.startswith("model_path=") and "knows no conditions" in message
    message = start("inference", ask={"r": 12}, **unconditional)
    assert message.startswith("ask={'r': 12}: must be empty") and "conditional.json" in message
    assert start("inference", guidance=2, **unconditional).startswith("guidance=2: must be 1")
    assert start("inference", conditions=["r"], **unconditional).startswith("conditions=['r']: must be names with")
    assert "conditional.json" in start("inference")


# Evaluation


def test_control_of_real_spheres():
    """Real spheres are what was asked for; a model that is off by as much as the limit, in any way, is found out."""
    names = ("r", "cx", "a", "b")
    spheres = SphereDataset(48, LAW, seed=4)
    asked = torch.stack([ConditionedVolumes(spheres, names)[i]["condition"] for i in range(48)]).double().numpy().T
    asked = dict(zip(names, asked, strict=True))
    measured = measure_dataset(spheres)
    lines = score_control(measured, asked)
    assert all(line.ok for line in lines.values()) and len(lines) == 12
    for name, shift in (("r", 0.3), ("cx", -0.3), ("a", 0.03), ("b", -0.03)):
        wrong = score_control({**measured, name: measured[name] + shift}, asked)
        assert [key for key, line in wrong.items() if not line.ok] == [f"rmse_{name}"]
        assert wrong[f"bias_{name}"].value == pytest.approx(shift, abs=0.02)
        assert wrong[f"quantile_{name}"].value == pytest.approx(abs(shift), rel=0.5)
    # a volume without a sphere counts as not valid, and has no error
    empty = {name: np.where(np.arange(48) == 5, np.nan, values) for name, values in measured.items()}
    assert score_control(empty, asked)["rmse_r"].count == 47


def test_evaluate_conditional(conditional_weights, tmp_path):
    """JSON, figure and report, of each case; beside them the real spheres, whose errors are within every limit."""
    overlays = ("conditional", "evaluate_conditional", "smoke")
    run_workflow("evaluate", *overlays, **SETTINGS, **conditional_weights, output_dir=str(tmp_path))
    found = read_json(tmp_path / "fidelity_conditional.json")
    assert len(found["cases"]) == 12 and found["cases"][0]["asked"] == list(PARAMETERS)
    for case in found["cases"]:
        rmse = {name.removeprefix("rmse_") for name in case["volumes"] if name.startswith("rmse_")}
        assert rmse <= set(case["asked"]) and "valid" in case["volumes"]  # an untrained model may draw no sphere
    real = found["real"]["volumes"]
    assert real["valid"]["ok"] and all(real[f"rmse_{name}"]["ok"] for name in PARAMETERS)
    assert {case["guidance"] for case in found["cases"]} == {1.0, 1.5, 3.0}
    assert (tmp_path / "control.png").stat().st_size > 1e4
    page = (tmp_path / "report.html").read_text()
    for words in ("largest KS, free", "real spheres", "measured less asked", "How well requests are obeyed"):
        assert words in page


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ([{"asked": ["rr"], "guidance": 1}], "did you mean r?"),
        ([{"asked": ["r"]}], "must be a list of"),
        ([], "must be a list of"),
    ],
)
def test_wrong_cases(conditional_weights, tmp_path, cases, said):
    overlays = ("conditional", "evaluate_conditional", "smoke")
    settings = {**SETTINGS, **conditional_weights, "output_dir": str(tmp_path / "out"), "cases": cases}
    message = find_mistake(lambda: make_workflow("evaluate", *overlays, **settings))
    assert message.startswith("cases") and said in message


def test_evaluate_nothing_asked(conditional_weights, tmp_path):
    """The unconditional evaluation takes conditional weights, and asks for nothing."""
    run_workflow("evaluate", "conditional", "smoke", **SETTINGS, **conditional_weights, output_dir=str(tmp_path))
    assert len(read_json(tmp_path / "fidelity.json")["volumes"]) > 2


def test_released_model_obeys(tmp_path):
    """Sixteen balls have what they were asked for, and are not the same ball."""
    asked = {"r": 20, "cx": 30, "a": 0.3}
    run_workflow("inference", "conditional", **RELEASED, output_dir=str(tmp_path), num_samples=16, ask=asked)
    rows = read_table(tmp_path)
    for name, limit in (("r", 0.25), ("cx", 0.25), ("a", 0.02)):
        # the limits of the evaluation; of 16 values a root mean square is 1.53 times the true one once in 500 times
        assert np.sqrt(np.mean([float(row[f"{name}_difference"]) ** 2 for row in rows])) < 1.53 * limit
    assert np.std([float(row["cy"]) for row in rows]) > 3


def test_released_control():
    """The released scores are of the seed and the number fixed before, and hold the bounds that were set."""
    found = read_json(BUNDLE / "models" / "fidelity_conditional.json")
    settings = found["settings"]
    assert settings["seed"] == 101 and settings["num_samples"] == 2000 and settings["num_inference_steps"] <= 10
    cases = {tuple(case["asked"]): case["volumes"] for case in found["cases"] if case["guidance"] == 1}
    names = set(PARAMETERS)
    assert {(), PARAMETERS, *((name,) for name in PARAMETERS)} <= set(cases)
    assert len([asked for asked in cases if len(asked) == 3]) >= 2
    for asked, volumes in cases.items():
        for name in asked:
            assert volumes[f"rmse_{name}"]["value"] <= (0.02 if name in ("a", "b") else 0.25), (asked, name)
        for name in names - set(asked):
            assert volumes[f"ks_{name}"]["ok"], (asked, name)
        assert volumes["valid"]["value"] >= 0.996, asked
    for case in found["cases"]:
        if case["guidance"] == 1:
            assert set(case["failed"]) <= ({"valid"} if case["asked"] else set()), case["asked"]


# Sweep


def test_sweep_requests():
    """Each row moves one value from end to end, and every ball lies inside the grid."""
    requests = make_sweep(PARAMETERS, RANGES, 8, size=64)
    assert requests.shape == (6, 8, 6)
    for i, name in enumerate(PARAMETERS):
        moved = requests[i, :, i]
        assert (moved.diff() > 0).all() and len(requests[i].unique(dim=0)) == 8
        low, high = LAW.bounds(name)
        r = requests[i, 0, 0]
        expected = (r, 64 - r) if name.startswith("c") else (low, high)
        assert moved[0].item() == pytest.approx(float(expected[0])) and moved[-1].item() == pytest.approx(
            float(expected[1])
        )
    rows = [dict(zip(PARAMETERS, row.tolist(), strict=True)) for row in requests.flatten(0, 1)]
    for row in rows:
        read_requests(PARAMETERS, RANGES, 1, ask=row, size=64)


def test_sweep(tmp_path):
    """The released model moves what is asked: each picture of the animation is another one."""
    run_workflow("inference", "conditional", "inference_sweep", **RELEASED, output_dir=str(tmp_path), sweep_steps=3)
    with Image.open(tmp_path / "sweep.gif") as animation:
        assert animation.n_frames == 4 and animation.width > 2 * 6 * 64  # there and back
    assert (tmp_path / "sweep.png").stat().st_size > 1e4 and (tmp_path / "report.html").exists()


# Scans


def test_numbers_beside_scans(smoke, tmp_path):
    """Fields of a datalist are conditions: their ranges come from the training set, a missing one is free."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(9):
        volume = np.zeros((20, 20, 20), np.float32)
        volume[4 : 8 + i, 4:15, 4:15] = 100 + rng.standard_normal((4 + i, 11, 11))
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{i}.nii.gz")
        items.append({"image": f"{i}.nii.gz", "age": 50 + i, "sex": i % 2})
    del items[2]["age"]
    items[3]["sex"] = None
    path = tmp_path / "scans.json"

    def write(**changes) -> dict:
        content = {"training": items[:7], "validation": items[7:8], "test": items[8:], **changes}
        path.write_text(json.dumps(content))
        return {"dataset_dir": str(path), "image_size": 32, "conditions": ["age", "sex"]}

    train = partial(make_workflow, "train_diffusion", "conditional", "smoke", train_batch_size=4)
    paths = {"autoencoder_path": str(smoke["autoencoder_path"]), "output_dir": str(tmp_path / "out")}
    workflow = train(**write(), **paths)
    workflow.run()
    workflow.finalize()
    weights = torch.load(tmp_path / "out" / "model.pt")
    assert read_names(weights) == ("age", "sex") and weights["tokens.ranges"].tolist() == [[50, 56], [0, 1]]
    values = workflow.parser.get_parsed_content("train#dataset").encoded[1]
    # one volume has no age, another no sex; the set is shuffled
    assert sorted(row for row in values.isnan().tolist() if any(row)) == [[False, True], [True, False]]

    settings = {"model_path": str(tmp_path / "out" / "model.pt"), "output_dir": str(tmp_path / "asked"), **write()}
    run_workflow("inference", "conditional", "smoke", **settings, ask={"age": 52})
    rows = read_table(tmp_path / "asked")
    assert [row["age_asked"] for row in rows] == ["52.0"] * 4 and "age_difference" not in rows[0]
    message = find_mistake(lambda: make_workflow("inference", "conditional", "smoke", **settings, ask={"age": 60}))
    assert message.startswith("ask#age=60: must be from 50 to 56")

    paths["output_dir"] = str(tmp_path / "none")
    message = find_mistake(lambda: train(**{**write(), "conditions": ["agee"]}, **paths))
    assert message.startswith("conditions: no volume to train from has the number 'agee'; did you mean age?")
    wrong = [{**items[7], "age": "old"}]
    message = find_mistake(lambda: train(**write(validation=wrong), **paths))
    assert "7.nii.gz: age='old': must be a number" in message
    message = find_mistake(lambda: train(**{**write(), "conditions": ["rr"], "dataset_dir": ""}, **paths))
    assert message.startswith("conditions: 'rr' is no parameter of a sphere") and "did you mean r?" in message


# Exports

LOAD = """
import importlib.util
import sys

import torch

assert importlib.util.find_spec("scripts") is None
path, inputs, result = sys.argv[1:]
model = torch.jit.load(path) if path.endswith(".ts") else torch.export.load(path).module()
torch.manual_seed(0)
with torch.no_grad():
    torch.save([model(*torch.load(inputs)), model(*(x[:1] for x in torch.load(inputs)))], result)
"""
LOAD_ONNX = """
import importlib.util
import sys

import onnxruntime
import torch

assert importlib.util.find_spec("scripts") is None
path, inputs, result = sys.argv[1:]
noise, condition = (x.numpy() for x in torch.load(inputs))
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
torch.save(torch.from_numpy(session.run(["voxels"], {"noise": noise, "condition": condition})[0]), result)
"""


def test_exports_take_requests(conditional_weights, tmp_path):
    """Noise and what is asked for, as in Python, where this repository can not be imported."""
    settings = {
        **SETTINGS,
        "model_path": conditional_weights["model_path"],
        "output_dir": str(tmp_path),
        "guidance": 2.0,
        "num_inference_steps": 2,
    }
    workflow = make_workflow("inference", "conditional", "inference_export", "smoke", **settings)
    workflow.run()
    generator = workflow.parser.get_parsed_content("network_def").eval()
    torch.jit.script(generator).save(tmp_path / "model.ts")
    asked = torch.tensor([[10.0, 16.0, NAN, NAN, NAN, NAN], [NAN] * 6, [NAN, 20.0, NAN, NAN, 0.2, 1.0]])
    noise = torch.randn(3, 32, 1, 1, 1)
    torch.save([noise, asked], tmp_path / "inputs.pt")
    for name in ("model_conditional.pt2", "model.ts"):
        files = [str(tmp_path / file) for file in (name, "inputs.pt", "result.pt")]
        run_process("python", "-c", LOAD, *files, folder=tmp_path)
        volumes, one = torch.load(tmp_path / "result.pt")
        torch.manual_seed(0)
        for found, expected in (
            (volumes, generator(noise, condition=asked)),
            (one, generator(noise[:1], condition=asked[:1])),
        ):
            differs = (found != 0) != (expected != 0)  # voxels whose odds are even but for rounding
            assert differs.float().mean() < 1e-3
            torch.testing.assert_close(found[~differs], expected[~differs], atol=1e-3, rtol=0)
    files = [str(tmp_path / file) for file in ("model_conditional.onnx", "inputs.pt", "result.pt")]
    run_process("python", "-c", LOAD_ONNX, *files, folder=tmp_path)
    p, mean, _ = torch.load(tmp_path / "result.pt").chunk(3, dim=1)
    generated, still = p > 0.5, generator(noise, torch.zeros(3, 1, 32, 32, 32), asked)
    agree = generated == (still != 0)
    assert agree.float().mean() > 0.999
    torch.testing.assert_close(torch.where(generated, mean, 0.0)[agree], still[agree], atol=1e-3, rtol=0)


def test_program_of_the_readme(conditional_weights, tmp_path):
    """The README's lines ask for a sphere and get a volume, where the released weights would be."""
    (program,) = read_blocks("README.md", "python")
    assert len([line for line in program.splitlines() if line]) <= 10
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    for name in ("configs", "scripts"):
        (tmp_path / "bundle" / name).symlink_to(BUNDLE / name)
    shutil.copy(conditional_weights["model_path"], tmp_path / "bundle" / "models" / "model_conditional.pt")
    program += "\nprint(volume.shape)"
    assert "torch.Size([1, 1, 64, 64, 64])" in run_process("python", "-c", program, folder=tmp_path).stdout
