"""A user's mistake gets one clear error that names key, value and what is allowed, before any work starts."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, find_mistake, make_workflow, read_config, run_process

from scripts.checks import RULES, SettingError, check_settings
from scripts.data.files import FolderDataset

ALL = ("train_autoencoder", "train_diffusion", "inference", "evaluate", "data")


def mistake(config, tmp_path, **overrides) -> str:
    """The message of the ``SettingError`` that a workflow's start raises, before it has made its folder."""
    output = tmp_path / "out"
    message = find_mistake(lambda: make_workflow(config, "smoke", **{"output_dir": str(output), **overrides}))
    assert not output.exists(), "work had started"
    return message


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
def test_value_out_of_range(config, key, value, allowed, tmp_path):
    message = mistake(config, tmp_path, **{key: value})
    assert message.startswith(f"{key}={value!r}"[:-1] if isinstance(value, str) else f"{key}={value}")
    assert allowed in message


def test_file_instead_of_folder(tmp_path):
    (tmp_path / "file").touch()
    message = mistake("train_autoencoder", tmp_path, ckpt_dir=str(tmp_path / "file" / "checkpoints"))
    assert message.startswith("ckpt_dir=")


def test_folder_without_volumes(smoke, tmp_path):
    """A folder that is missing, empty, or of other or damaged volumes is named."""
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
    assert "short.nii.gz can't be read as NIfTI" in find_mistake(lambda: FolderDataset(folder, 64)[0])
    (folder / "a.nii.gz").write_bytes(b"nothing")
    assert "a.nii.gz can't be read as NIfTI" in mistake("evaluate", tmp_path, dataset_dir=str(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
def test_precision_of_device(tmp_path):
    """A precision that the device lacks is named."""
    message = mistake("train_autoencoder", tmp_path, precision="float16")
    assert message.startswith("precision='float16'") and "float32" in message


@pytest.mark.parametrize("config", ["train_autoencoder", "data"])
def test_law_out_of_range(config, tmp_path):
    message = mistake(config, tmp_path, **{"law#r_max": 40})
    assert message.startswith("r_max=40") and "32.0" in message


@pytest.mark.parametrize(
    ("config", "key"),
    [("train_diffusion", "autoencoder_path"), ("inference", "model_path"), ("evaluate", "model_path")],
)
def test_unusable_weights(config, key, smoke, tmp_path):
    """Weights that are missing, damaged or of another network are named."""
    others = {"autoencoder_path": str(smoke["autoencoder_path"])} if config == "evaluate" else {}
    assert mistake(config, tmp_path, **others, **{key: "none.pt"}).startswith(f"{key}='none.pt': no such file")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(smoke["model_path"].read_bytes()[:10_000])
    assert "not a readable file" in mistake(config, tmp_path, **others, **{key: str(damaged)})
    # the weights of the other network
    wrong = smoke["model_path" if key == "autoencoder_path" else "autoencoder_path"]
    message = mistake(config, tmp_path, **others, **{key: str(wrong)})
    assert "does not fit" in message and "lacks" in message


@pytest.mark.parametrize("config", ALL)
def test_several_processes(config, tmp_path, monkeypatch):
    """Processes that torchrun started together don't write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert mistake(config, tmp_path).startswith("WORLD_SIZE=2: ")


def test_first_mistake_first():
    """The first mistake is told before a later, slower check starts."""
    with pytest.raises(SettingError, match="epochs"):
        check_settings(epochs=0, output_dir="/proc/none")


@pytest.mark.parametrize("name", ALL)
def test_keys_at_the_top(name):
    """Every key of the contract stands at the top of its config and is checked."""
    config = read_config(name)
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
    assert {"_target_": "scripts.config.check_config"} in steps[:2]


def test_excepthook_stays(tmp_path):
    before = sys.excepthook
    make_workflow("data", "smoke", output_dir=str(tmp_path))
    assert sys.excepthook is before


def test_error_on_command_line(tmp_path):
    """On the command line a mistake is one line, without a traceback."""
    command = ["python", "-m", "monai.bundle", "run", "--config_file", "configs/train_autoencoder.json"]
    options = ["--epochs", "0", "--output_dir", str(tmp_path / "out")]
    result = run_process(*command, *options, folder=BUNDLE, check=False)
    assert result.returncode == 1
    assert "error: epochs=0: must be a positive integer." in result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert not Path(tmp_path / "out").exists()
