"""A user's own volumes instead of spheres: found, split, brought to one form, and taken through every config."""

import csv
import json
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import find_mistake, make_workflow, read_json, run_workflow

from scripts.data.files import list_volumes, split_volumes

NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Twelve ellipsoids of int16 values, 2 mm voxels in another orientation than RAS, one of them with NaN."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, (30, 36, 28)), indexing="ij"))
    for i in range(12):
        centre, radii = rng.uniform(12, 16, 3), rng.uniform(6, 10, 3)
        inside = (((grid.T - centre) / radii) ** 2).sum(-1).T < 1
        # brighter towards the first axis' end, so that a flip shows
        volume = np.where(inside, 400 + 10 * grid[0] + 50 * rng.standard_normal(inside.shape), 0)
        volume = volume.astype(np.int16) if i else np.where(volume == 0, np.nan, volume).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-2, -2, 2, 1])), folder / f"scan_{i:02d}.nii.gz")
    return folder


def preprocess(file: Path, **overrides) -> torch.Tensor:
    parser = make_workflow("data", dataset_dir=str(file.parent), **overrides).parser
    return parser.get_parsed_content("preprocessing")({"image": str(file)})["image"]


def test_list_volumes(scans, tmp_path):
    """A folder, a pattern and a datalist name the same volumes."""
    files = sorted(str(path) for path in scans.iterdir())

    def paths(where):
        return {name: [item["image"] for item in items] for name, items in list_volumes(where).items()}

    assert paths(scans) == paths(f"{scans}/*.nii.gz") == {"training": files}
    assert paths(f"{scans}/**/scan_0?.nii.gz")["training"] == files[:10]
    datalist = scans / "datalist.json"
    try:
        names = [Path(file).name for file in files]
        content = {"training": [{"image": name, "label": "none.nii"} for name in names[:8]], "test": names[8:]}
        datalist.write_text(json.dumps(content))
        assert paths(datalist) == {"training": files[:8], "test": files[8:]}
        split = split_volumes(datalist)
    finally:
        datalist.unlink()
    assert [item["image"] for item in split["test"]] == files[8:]
    assert sorted(item["image"] for part in ("training", "validation") for item in split[part]) == files[:8]


def test_split_volumes(scans):
    """The split is disjoint and complete, and depends on the seed."""
    split = split_volumes(scans, seed=1)
    assert {name: len(items) for name, items in split.items()} == {"training": 10, "validation": 1, "test": 1}
    assert sorted(item["image"] for items in split.values() for item in items) == [
        item["image"] for item in list_volumes(scans)["training"]
    ]
    assert split == split_volumes(f"{scans}/*.nii.gz", seed=1)
    assert any(split["test"] != split_volumes(scans, seed=seed)["test"] for seed in range(2, 6))


def test_groups(scans, tmp_path):
    """Volumes of a group stay together; one whose group is not known is a group of its own."""
    files = [item["image"] for item in list_volumes(scans)["training"]]
    items = [{"image": file, "group": ["a", 1] if i < 6 else None} for i, file in enumerate(files)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    sets = split_volumes(tmp_path / "list.json")
    assert sum(map(len, sets.values())) == 12
    assert any({*files[:6]} <= {item["image"] for item in part} for part in sets.values())
    assert sum(len(sets[name]) for name in ("validation", "test")) in (2, 7)


def test_configs_split_alike(scans, tmp_path):
    sets = []
    for name, overlays in (("train_autoencoder", ()), ("train_diffusion", ()), ("evaluate", ("evaluate_scans",))):
        workflow = make_workflow(name, *overlays, "smoke", dataset_dir=str(scans), output_dir=str(tmp_path), seed=7)
        sets.append(workflow.parser.get_parsed_content("scans"))
    assert sets[0] == sets[1] == sets[2] == split_volumes(scans, seed=0)


def test_preprocess_scan(scans):
    """A scan comes out in RAS, at the spacing and size, standardised."""
    file = scans / "scan_01.nii.gz"
    volume = preprocess(file, image_size=32, spacing=[2.0, 2.0, 2.0])
    raw = nibabel.load(file).get_fdata()
    assert volume.shape == (1, 32, 32, 32) and volume.dtype == torch.float32 and type(volume) is torch.Tensor
    # the background stays exactly 0, the rest is standardised
    inside = volume[volume != 0]
    assert len(inside) == np.count_nonzero(raw)
    assert float(inside.mean()) == pytest.approx(0, abs=1e-4) and float(inside.std()) == pytest.approx(1, abs=1e-3)
    # RAS: the first axis was stored from right to left, bright at its end
    x = torch.arange(32.0).view(1, -1, 1, 1).expand_as(volume)[volume != 0]
    assert float(torch.corrcoef(torch.stack([x, inside]))[0, 1]) < -0.3
    # twice as fine voxels: about 8 times as many, and no rim of values between the tissue's and the background's
    finer = preprocess(file, image_size=80, spacing=[1.0, 1.0, 1.0], normalize=False)
    assert 7 * len(inside) < int((finer != 0).sum()) < 9 * len(inside)
    assert float(finer[finer != 0].min()) >= raw[raw != 0].min()
    assert preprocess(scans / "scan_00.nii.gz", image_size=32, spacing=[2.0, 2.0, 2.0]).isfinite().all()


def test_preprocess_sphere(folder):
    """Volumes of this bundle come back bit for bit."""
    file = folder / "volume_0.nii.gz"
    volume = preprocess(file, normalize=False)
    assert torch.equal(volume[0], torch.from_numpy(nibabel.load(file).get_fdata(dtype=np.float32)))


@pytest.mark.parametrize(
    ("name", "channel"),
    [("anatomical.nii", 0), ("example4d.nii.gz", 1), ("functional.nii", 19), ("example_nifti2.nii.gz", 0)],
)
def test_preprocess_real_nifti(name, channel, tmp_path):
    for copy in "abc":  # one for each set
        (tmp_path / f"{copy}_{name}").write_bytes((NIBABEL / name).read_bytes())
    volume = preprocess(tmp_path / f"a_{name}", channel=channel, spacing=[3.0, 3.0, 3.0])
    assert volume.shape == (1, 64, 64, 64)
    assert volume.isfinite().all() and 1000 < int((volume != 0).sum()) < 64**3
    assert float(volume[volume != 0].std()) == pytest.approx(1, abs=1e-2)


def test_configs_on_scans(scans, tmp_path):
    """Every config takes a datalist, whatever fields its items have beside the image."""
    items = list_volumes(scans)["training"]
    items = [{**item, "age": None, "site": "a"} if i % 3 else {**item, "age": 60 + i} for i, item in enumerate(items)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    options = {"dataset_dir": str(tmp_path / "list.json"), "image_size": 32, "spacing": [2.0, 2.0, 2.0]}
    options["train_batch_size"] = 4
    run_workflow("data", "smoke", run_id="preview", output_dir=str(tmp_path / "data"), **options)
    assert (tmp_path / "data" / "preview.png").exists()
    stage_1 = run_workflow("train_autoencoder", "smoke", output_dir=str(tmp_path / "autoencoder"), **options)
    metrics = stage_1.parser.get_parsed_content("validate#evaluator").state.metrics
    assert {"ssim", "mse", "psnr", "dice", "nll"} <= set(metrics) and not {"ssim_oracle", "a_rmse"} & set(metrics)
    # an epoch is train_size volumes, however many scans there are
    assert stage_1.trainer.state.iteration == 2 * (16 // 4)
    paths = {"autoencoder_path": str(tmp_path / "autoencoder" / "model_autoencoder.pt")}
    run_workflow("train_diffusion", "smoke", output_dir=str(tmp_path / "diffusion"), **options, **paths)
    paths["model_path"] = str(tmp_path / "diffusion" / "model.pt")
    options.pop("train_batch_size")
    run_workflow("inference", "smoke", output_dir=str(tmp_path), **options, model_path=paths["model_path"])
    written = nibabel.load(tmp_path / "volume_00003.nii.gz")
    assert written.shape == (32, 32, 32) and np.array_equal(written.affine, np.diag([2, 2, 2, 1]))
    with (tmp_path / "samples.csv").open() as file:
        assert [set(row) for row in csv.DictReader(file)] == [{"file", "voxels", "mean", "std"}] * 4
    run_workflow("evaluate", "evaluate_scans", "smoke", output_dir=str(tmp_path), **options, **paths)
    found = read_json(tmp_path / "fidelity.json")
    assert set(found["real"]) == {"mmd", "ms_ssim"}  # two volumes: too few to learn from
    assert set(found["volumes"]) == {"mmd", "ms_ssim", "copies"}
    assert found["settings"]["test_size"] == 1 and 0 < found["reconstruction"]["ssim"] < 1
    assert all((tmp_path / name).exists() for name in ("fidelity.png", "reconstructions.png"))
    page = (tmp_path / "report.html").read_text()
    assert "No law of these volumes is known" in page and "true law" not in page and "spacing" in page
    assert "perfect denoiser" not in page

    (tmp_path / "list.json").write_text(json.dumps({"training": items[1:]}))
    train = partial(make_workflow, "train_autoencoder", "smoke", output_dir=str(tmp_path / "autoencoder"), **options)
    for resume in ("auto", True):  # the split is another one
        message = find_mistake(lambda resume=resume: train(train_batch_size=4, resume=resume))
        assert message.startswith(f"resume={resume!r}: ") and "dataset_dir (" in message


def test_mistakes_are_named(scans, tmp_path):
    """Every mistake about scans is named before any work starts."""

    def start(name="train_autoencoder", *overlays, **overrides):
        return find_mistake(
            lambda: make_workflow(name, *overlays, "smoke", output_dir=str(tmp_path / "out"), **overrides)
        )

    few = tmp_path / "few"
    few.mkdir()
    for file in ("scan_01.nii.gz", "scan_02.nii.gz"):
        (few / file).write_bytes((scans / file).read_bytes())
    assert "2 volumes to train from; must be at least 3" in start(dataset_dir=str(few))
    assert "channel=1: " in start(dataset_dir=str(scans), channel=1) and "has channels 0 to 0 alone" in start(
        dataset_dir=str(scans), channel=1
    )
    assert start(dataset_dir=str(scans), spacing=[1, 1]).startswith("spacing=[1, 1]: must be three numbers above 0")
    assert start(dataset_dir=str(scans), normalize="maybe").startswith("normalize='maybe': must be true or false")
    for content in ("{", "[]", '{"test": ["a.nii"]}', '{"training": ["a.nii"]}', '{"training": [{"image": 3}]}'):
        (tmp_path / "list.json").write_text(content)
        assert "not a readable datalist" in start(dataset_dir=str(tmp_path / "list.json")), content
    (tmp_path / "list.json").write_text('{"training": [{"image": "a.nii"}]}')
    assert "a.nii can't be read as NIfTI" in start(dataset_dir=str(tmp_path / "list.json"))
    assert "further down" in start(dataset_dir=str(tmp_path))
    assert "no such folder" in start("evaluate", "evaluate_scans", dataset_dir="")
    assert "matches no file" in start(dataset_dir=str(scans / "**" / "*_T2w.nii.gz"))
    assert not (tmp_path / "out").exists()
