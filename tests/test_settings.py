"""The keys that a user may set; wrong values of them are in test_wrong_values.py."""

import sys

import pytest
from conftest import find_mistake, make_workflow, read_config

from scripts.checks import RULES, SettingError, check_settings

ALL = ("train_autoencoder", "train_diffusion", "inference", "evaluate", "data")


@pytest.mark.parametrize("config", ALL)
def test_several_processes(config, tmp_path, monkeypatch):
    """Processes that torchrun started together don't write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = find_mistake(lambda: make_workflow(config, "smoke", output_dir=str(tmp_path / "out")))
    assert message.startswith("WORLD_SIZE=2: ") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "overlays", "key", "value", "allowed"),
    [
        ("train_autoencoder", (), "train_batch_size", 8, "a multiple of 3"),
        ("train_diffusion", (), "val_size", 2, "at least 3"),
        ("inference", (), "num_samples", 2, "at least 3"),
        ("evaluate", (), "test_size", 1, "at least 3"),
        ("train_autoencoder", ("train_autoencoder_gan",), "WORLD_SIZE", 3, "runs in one process"),
        ("evaluate", ("conditional", "evaluate_conditional"), "WORLD_SIZE", 3, "runs in one process"),
        ("inference", ("conditional", "inference_sweep"), "WORLD_SIZE", 3, "runs in one process"),
    ],
)
def test_shares_of_processes(config, overlays, key, value, allowed, tmp_path, monkeypatch):
    """What the processes can't share is refused, before they look for each other."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    settings = {"output_dir": str(tmp_path / "out")} | ({key: value} if key != "WORLD_SIZE" else {})
    message = find_mistake(lambda: make_workflow(config, *overlays, f"multi_gpu_{config}", **settings))
    assert message.startswith(f"{key}={value}: ") and allowed in message and not (tmp_path / "out").exists()


def test_first_mistake_first():
    """The first mistake is told before a later, slower check starts."""
    with pytest.raises(SettingError, match="epochs"):
        check_settings({"epochs": 0, "output_dir": "/proc/none"}.items())


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
