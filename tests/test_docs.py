"""The commands and programs of the documents, run as a reader would, at smoke size."""

import re
import shlex

import pytest
from conftest import BUNDLE, ROOT, SMALL, SMALL_BLOCKS, make_workflow, read_config, run_process
from documents import DOCUMENTS, read_blocks, read_commands, read_links, read_targets
from fire.parser import DefaultParseValue

RUNS = sorted({line for name in DOCUMENTS for line in read_commands(name, "python -m monai.bundle run")})
HERE = [line for line in RUNS if "inference_export" not in line]  # test_exports.py runs those


def test_contract_is_documented():
    """The commands that this bundle promises stand in the documents."""
    for config in ("train_autoencoder", "train_diffusion", "inference", "evaluate"):
        assert any(f"--config_file configs/{config}.json" in line for line in RUNS), config
    for run_id in ("preview", "benchmark"):
        assert f"python -m monai.bundle run {run_id} --config_file configs/data.json" in RUNS


@pytest.mark.parametrize("line", HERE)
def test_command_runs(line, small_weights, diffusion_weights, conditional_weights, folder, tmp_path):
    """Each ``python -m monai.bundle run`` line, at small sizes, with small weights and another output folder."""
    arguments = shlex.split(re.sub(r"\s#.*", "", line))[4:]
    run_id = "run" if arguments[0].startswith("--") else arguments.pop(0)
    options = dict(zip([name.removeprefix("--") for name in arguments[::2]], arguments[1::2], strict=True))
    configs = re.findall(r"configs/(\w+)\.json", options.pop("config_file"))
    values = {name: DefaultParseValue(value) for name, value in options.items()}  # as MONAI's command line does
    top = read_config(configs[0])
    sizes = {key: value for key, value in SMALL.items() if key in top}
    if {"diffusion", "ddpm"} & set(configs):
        sizes |= {"num_train_timesteps": 20, "num_inference_steps": 20 if "ddpm" in configs else 5}
    weights = diffusion_weights if {"diffusion", "ddpm"} & set(configs) else small_weights
    weights = conditional_weights if "conditional" in configs else weights
    values |= {key: path for key, path in weights.items() if key in values or top.get(key) == "auto"}
    paths = {"dataset_dir": folder, "output_path": tmp_path / "converted.pt", "output_dir": tmp_path / "out"}
    values |= {key: str(path) for key, path in paths.items() if key in values or key == "output_dir"}
    if configs == ["evaluate"] and "dataset_dir" in values:  # which takes volumes as they are
        del sizes["image_size"]
    if "large" in configs:
        sizes |= SMALL_BLOCKS
    if "num_samples" in values:
        values["num_samples"] = 2
    if "ask" in values:
        values["ask"] = {"r": 12}  # of the smaller grid
    if "requests" in values:
        values["requests"] = str(tmp_path / "requests.csv")
        (tmp_path / "requests.csv").write_text("r,a\n" + "12,\n,0.3\n" * 4)
    if run_id == "publish":
        (tmp_path / "models").mkdir()
        (tmp_path / "scripts").symlink_to(BUNDLE / "scripts")
    workflow = make_workflow(*configs, "smoke", run_id=run_id, **{**sizes, **values})
    if run_id == "publish":
        workflow.parser["bundle_root"] = str(tmp_path)
        workflow.initialize()
    workflow.run()
    assert any(tmp_path.rglob("*.*"))


def test_python_runs(tmp_path):
    """The programs for Python run from a plain script, and are short."""
    sample, score, workflow = read_blocks("bundle/docs/python.md", "python")
    assert all(len([line for line in block.splitlines() if line]) <= 10 for block in (sample, score, workflow))
    (tmp_path / "bundle").mkdir()
    for name in ("configs", "scripts", "models"):
        (tmp_path / "bundle" / name).symlink_to(BUNDLE / name)
    # the second scores what the third writes
    output = [
        run_process("python", "-W", "ignore", "-c", block, folder=tmp_path).stdout
        for block in (workflow, score, sample)
    ]
    assert "valid spheres, share" in output[1] and "KS of r" in output[1]
    assert "torch.Size([4, 1, 64, 64, 64])" in output[2]
    assert len(list((tmp_path / "bundle" / "runs" / "inference").glob("sphere_*.nii.gz"))) == 4


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert read_targets(name) <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_exist(name):
    """Every link and picture of a document exists."""
    links = read_links(name)
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_path_of_a_machine(name):
    assert not re.search(r"/(home|root|work|Users)/", DOCUMENTS[name])


def test_languages_give_same_commands():
    assert read_blocks("README.md") == read_blocks("README.zh-CN.md")
