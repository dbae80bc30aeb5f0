"""A user's mistake gets one clear error that names key, value and what is allowed, before any work starts."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, CONFIGS, make_workflow

from scripts.checks import RULES, SettingError, check_settings
from scripts.data.files import FolderDataset

ALL = ("train_autoencoder", "train_diffusion", "inference", "evaluate", "data")


def mistake(config, tmp_path, **overrides) -> str:
    """The message of the ``SettingError`` that a workflow's start raises."""
    output = tmp_path / "out"
    with pytest.raises(RuntimeError) as failure:
        make_workflow(config, "smoke", **{"output_dir": str(output), **overrides})
    error = failure.value
    while error is not None and not isinstance(error, SettingError):
        error = error.__cause__
    assert error is not None, failure.value
    assert not output.exists(), "work had started"
    return str(error)


@pytest.mark.parametrize(
    ("config", "key", "value", "allowed"),
    [
        *[
            ("train_autoencoder", key, value, "a positive integer")
            for key in ("epochs", "train_size")
            for value in (0, 2.5)
        ],
        *[
            (config, key, "many", "a positive integer")
            for config, key in (
                ("train_autoencoder", "train_batch_size"),
                ("train_autoencoder", "val_size"),
                ("train_autoencoder", "val_interval"),
                ("train_diffusion", "num_train_timesteps"),
                ("train_diffusion", "num_inference_steps"),
                ("inference", "num_samples"),
                ("inference", "sample_batch_size"),
                ("evaluate", "test_size"),
                ("evaluate", "diversity_size"),
                ("evaluate", "classifier_epochs"),
                ("evaluate", "num_inference_steps"),
                ("data", "benchmark_size"),
            )
        ],
        ("inference", "num_samples", -1, "a positive integer"),
        ("inference", "num_inference_steps", 1001, "at most num_train_timesteps=1000"),
        ("evaluate", "num_inference_steps", 2000, "at most num_train_timesteps=1000"),
        ("train_autoencoder", "train_batch_size", 17, "at most train_size=16"),
        ("train_diffusion", "train_batch_size", 17, "at most train_size=16"),
        ("train_autoencoder", "lr", 0, "above 0"),
        ("train_autoencoder", "lr", float("nan"), "above 0"),
        ("train_autoencoder", "kl_weight", -1, "at least 0"),
        ("train_autoencoder", "resume", "maybe", "true or false"),
        ("train_autoencoder", "num_workers", -1, "at least 0"),
        ("inference", "seed", 1.5, "at least 0"),
        ("train_diffusion", "precision", "fp16", "auto, float32, bf16, float16"),
        ("inference", "device", "cuda:7", "cpu"),
        ("train_autoencoder", "dataset_dir", "/data", "no such folder"),
        ("train_diffusion", "dataset_dir", "/data", "no such folder"),
        ("data", "dataset_dir", "/data", "no such folder"),
        ("train_autoencoder", "image_size", 40, "a multiple of 16"),
        ("train_diffusion", "image_size", 40, "a multiple of 16"),
        ("inference", "image_size", 40, "a multiple of 16"),
        ("evaluate", "image_size", 40, "a multiple of 16"),
        ("train_autoencoder", "output_dir", "/proc/none", "made and written to"),
        ("inference", "output_dir", "/proc/none", "made and written to"),
    ],
)
def test_a_value_out_of_its_range_is_named(config, key, value, allowed, tmp_path):
    message = mistake(config, tmp_path, **{key: value})
    assert message.startswith(f"{key}={value!r}"[:-1] if isinstance(value, str) else f"{key}={value}")
    assert allowed in message


def test_a_file_where_a_folder_belongs_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = mistake("train_autoencoder", tmp_path, ckpt_dir=str(tmp_path / "file" / "checkpoints"))
    assert message.startswith("ckpt_dir=")


def test_a_folder_without_such_volumes_is_named(smoke, tmp_path):
    folder = tmp_path / "volumes"
    assert mistake("evaluate", tmp_path, dataset_dir=str(folder)).startswith(f"dataset_dir={str(folder)!r}: no such")
    folder.mkdir()
    assert "holds no file" in mistake("evaluate", tmp_path, dataset_dir=str(folder))
    nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 32), np.float32), np.eye(4)), folder / "short.nii.gz")
    message = mistake("evaluate", tmp_path, dataset_dir=str(folder))
    assert "short.nii.gz has the shape (64, 64, 32)" in message and "(64, 64, 64)" in message
    whole = folder / "whole.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(64, 64, 64)), np.eye(4)), whole)
    (folder / "short.nii.gz").write_bytes(whole.read_bytes()[:100_000])
    whole.unlink()
    with pytest.raises(RuntimeError) as failure:  # MONAI's, around what a transform raises
        FolderDataset(folder, 64)[0]
    assert isinstance(failure.value.__cause__, SettingError)
    assert "short.nii.gz can't be read as NIfTI" in str(failure.value.__cause__)
    (folder / "a.nii.gz").write_bytes(b"nothing")
    assert "a.nii.gz can't be read as NIfTI" in mistake("evaluate", tmp_path, dataset_dir=str(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
def test_a_precision_that_the_device_lacks_is_named(tmp_path):
    message = mistake("train_autoencoder", tmp_path, precision="float16")
    assert message.startswith("precision='float16'") and "float32" in message


@pytest.mark.parametrize("config", ["train_autoencoder", "data"])
def test_a_law_that_can_not_be_met_is_named(config, tmp_path):
    message = mistake(config, tmp_path, **{"law#r_max": 40})
    assert message.startswith("r_max=40") and "32.0" in message


@pytest.mark.parametrize(
    ("config", "key"),
    [("train_diffusion", "autoencoder_path"), ("inference", "model_path"), ("evaluate", "model_path")],
)
def test_missing_and_damaged_weights_are_named(config, key, smoke, tmp_path):
    others = {"autoencoder_path": str(smoke["autoencoder_path"])} if config == "evaluate" else {}
    assert mistake(config, tmp_path, **others, **{key: "none.pt"}).startswith(f"{key}='none.pt': no such file")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(smoke["model_path"].read_bytes()[:10_000])
    assert "not a readable file" in mistake(config, tmp_path, **others, **{key: str(damaged)})
    # the weights of the other network
    wrong = smoke["model_path" if key == "autoencoder_path" else "autoencoder_path"]
    message = mistake(config, tmp_path, **others, **{key: str(wrong)})
    assert "does not fit" in message and "lacks" in message


def test_the_first_mistake_is_found_before_a_slow_check_can_start():
    with pytest.raises(SettingError, match="epochs"):
        check_settings(epochs=0, output_dir="/proc/none")


@pytest.mark.parametrize("name", ALL)
def test_every_key_of_the_contract_stands_at_the_top_and_is_checked(name):
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    keys = {"bundle_root", "device", "precision", "seed", "num_workers", "output_dir", "dataset_dir"}
    if name.startswith("train"):
        keys |= {"epochs", "train_size", "val_size", "train_batch_size", "val_interval", "lr", "ckpt_dir", "resume"}
    if name == "train_autoencoder":
        keys |= {"kl_weight"}
    if name in ("train_diffusion", "evaluate", "inference"):
        keys |= {"autoencoder_path"}
    if name in ("evaluate", "inference"):
        keys |= {"model_path", "num_samples", "sample_batch_size", "num_inference_steps"}
    top = list(config)[: next(i for i, value in enumerate(config.values()) if isinstance(value, dict))]
    assert keys <= set(top)
    # check_config checks each key at the top that has a rule
    assert keys - {"bundle_root"} <= set(RULES)
    steps = [config["settings"] if step == "@settings" else step for step in config["initialize"]]
    assert {"_target_": "scripts.checks.check_config"} in steps[:2]


def test_a_program_s_own_hook_for_exceptions_stays(tmp_path):
    before = sys.excepthook
    make_workflow("data", "smoke", output_dir=str(tmp_path))
    assert sys.excepthook is before


def test_on_the_command_line_it_is_one_line_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train_autoencoder.json"]
    result = subprocess.run(
        [*command, "--epochs", "0", "--output_dir", str(tmp_path / "out")],
        cwd=BUNDLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "error: epochs=0: must be a positive integer." in result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert not Path(tmp_path / "out").exists()
