"""The commands of the documents, run as a reader would, at smoke size."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE, make_workflow
from fire.parser import DefaultParseValue

ROOT = BUNDLE.parent
DOCUMENTS = {
    name: (ROOT / name).read_text()
    for name in ("README.md", "README.zh-CN.md", "bundle/docs/README.md", "bundle/docs/experiments.md")
}


def commands(document: str) -> list[str]:
    """Every line of a document's code blocks."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", DOCUMENTS[document], flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()]


LINES = {line for name in DOCUMENTS for line in commands(name) if line.startswith("python -m monai.bundle run")}
RUNS = sorted(line for line in LINES if "inference_export.json" not in line)  # these are run by test_exports.py


def test_the_contract_s_commands_are_documented():
    for config in ("train_autoencoder", "train_diffusion", "inference", "evaluate"):
        assert any(f"--config_file configs/{config}.json" in line for line in RUNS), config
    for run_id in ("preview", "benchmark"):
        assert f"python -m monai.bundle run {run_id} --config_file configs/data.json" in RUNS


@pytest.mark.parametrize("line", RUNS)
def test_a_documented_command_runs(line, smoke, folder, tmp_path, monkeypatch):
    """Each ``python -m monai.bundle run`` line, with smoke sizes, the smoke weights and another output folder."""
    arguments = shlex.split(line)[4:]
    run_id = "run" if arguments[0].startswith("--") else arguments.pop(0)
    options = dict(zip([name.removeprefix("--") for name in arguments[::2]], arguments[1::2], strict=True))
    configs = re.findall(r"configs/(\w+)\.json", options.pop("config_file"))
    values = {name: DefaultParseValue(value) for name, value in options.items()}  # as MONAI's command line does
    for key in ("autoencoder_path", "model_path"):
        if key in values or (configs[0] in ("train_diffusion", "evaluate", "inference") and key == "model_path"):
            values[key] = str(smoke[key])
    if "dataset_dir" in values:
        values["dataset_dir"] = str(folder)
        if configs[0].startswith("train"):
            values["train_batch_size"] = 4  # of six volumes, four to train from
    if "output_path" in values:
        values["output_path"] = str(tmp_path / "converted.pt")
    if configs[0] in ("train_diffusion", "evaluate"):
        values["autoencoder_path"] = str(smoke["autoencoder_path"])
    if configs[0] == "train_diffusion":
        del values["model_path"]
    if run_id == "publish":
        (tmp_path / "models").mkdir()
        (tmp_path / "scripts").symlink_to(BUNDLE / "scripts")
    sizes = {"num_samples": 2} if "num_samples" in values else {}
    if "ddpm" in configs:  # which takes every step
        sizes |= {"num_inference_steps": 20, "num_train_timesteps": 20}
    workflow = make_workflow(
        *configs, "smoke", run_id=run_id, **{**values, **sizes, "output_dir": str(tmp_path / "out")}
    )
    if run_id == "publish":
        workflow.parser["bundle_root"] = str(tmp_path)
        workflow.initialize()
    workflow.run()
    assert any(tmp_path.rglob("*.*"))


def test_the_readme_s_python_runs_from_a_plain_script(tmp_path):
    section = DOCUMENTS["README.md"].partition("## From Python")[2].partition("\n## ")[0]
    sample, score, workflow = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert all(len([line for line in block.splitlines() if line]) <= 10 for block in (sample, score, workflow))
    (tmp_path / "bundle").mkdir()
    for name in ("configs", "scripts", "models"):
        (tmp_path / "bundle" / name).symlink_to(BUNDLE / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", block],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for block in (workflow, score, sample)
    ]
    assert "valid spheres, share" in output[1] and "KS of r" in output[1]
    assert "torch.Size([4, 1, 64, 64, 64])" in output[2]
    assert len(list((tmp_path / "bundle" / "runs" / "inference").glob("sphere_*.nii.gz"))) == 4


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name, text in DOCUMENTS.items():
        for target in re.findall(r"`make ([a-z]+)`|^make ([a-z]+)$", text, flags=re.MULTILINE):
            assert (target[0] or target[1]) in targets, (name, target)


def test_both_languages_give_the_same_commands():
    assert commands("README.md") == commands("README.zh-CN.md")


def test_links_and_pictures_of_the_documents_exist():
    for name, text in DOCUMENTS.items():
        for link in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
            assert ((ROOT / name).parent / link).exists(), (name, link)


def test_documents_name_no_path_of_a_machine():
    for name, text in DOCUMENTS.items():
        assert not re.search(r"/(home|root|work|Users)/", text), name
        assert Path(name).suffix == ".md"
