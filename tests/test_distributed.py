"""Several processes: what they train, generate and score is what one process does."""

import csv
import itertools
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from commands import BUNDLE, arguments, assert_same_training, await_that, curves
from conftest import CONFIGS, SMALL, read_json
from torch.utils.data import BatchSampler, RandomSampler

from scripts import distributed

# three processes share a batch of 6, and 5 volumes of a validation unevenly
SIZES = {**SMALL, "train_size": 12, "train_batch_size": 6, "val_size": 5}
SIZES |= {"epochs": 2, "val_interval": 2}
# Adam hides the size of a gradient, so the log tells it: sums in the place of means would leave the same weights
NORMS = "['skipped_steps','gradient_norm']"
# at 32^3 the latents are 1^3, so that normalisation needs more than the default's one or two values in a group
UNET = {"image_size": 32, "diffusion_def#channels": "[64]", "diffusion_def#norm_num_groups": 4}


def list_handlers(name: str) -> list[str]:
    """Name the handlers of a training, in the order of its config."""
    return [handler["_target_"].split(".")[-1] for handler in read_json(CONFIGS / f"{name}.json")["train"]["handlers"]]


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """Run a command in so many processes to its end; what it wrote."""

    def run(processes: int, name: str, **settings) -> Path:
        folder = settings.pop("output_dir", None) or tmp_path_factory.mktemp(f"{name}_{processes}")
        overlay = [f"multi_gpu_{name}"] if processes > 1 else []
        if name.startswith("train"):
            settings[f"train#handlers#{list_handlers(name).index('StatsHandler')}#state_attributes"] = NORMS
        commands = server.start_processes(processes, name, *overlay, "smoke", output_dir=folder, **settings)
        for command in commands:
            assert command.wait() == 0, "\n".join(command.output for command in commands)
        # the first alone has something to say, and draws curves
        assert all("saved" not in command.output and "%" not in command.output for command in commands[1:])
        if name.startswith("train"):
            (folder / "log.txt").write_text(commands[0].output)
            assert not (folder / "tensorboard" / "earlier").exists()
        return folder

    return run


@pytest.fixture(scope="module")
def first(run) -> Path:
    """The first stage, trained by one process."""
    return run(1, "train_autoencoder", **SIZES)


@pytest.fixture(scope="module")
def second(run, first) -> Path:
    """The second stage, trained by one process."""
    return run(1, "train_diffusion", autoencoder_path=first / "model_autoencoder.pt", **{**SIZES, **UNET})


def assert_same_norms(folder, expected):
    """The gradients of the last step of each epoch are as long."""
    norms, wanted = (re.findall(r"gradient_norm: (\S+)", (path / "log.txt").read_text()) for path in (folder, expected))
    assert len(wanted) == SIZES["epochs"]
    assert [float(norm) for norm in norms] == pytest.approx([float(norm) for norm in wanted], rel=1e-2)


def test_handlers_of_the_first():
    """What the overlays leave to the first process: log and progress bar, and no handler that trains."""
    for name in ("train_autoencoder", "train_diffusion"):
        overlay = read_json(CONFIGS / f"multi_gpu_{name}.json")
        handlers = enumerate(list_handlers(name))
        disabled = [handler for i, handler in handlers if f"train#handlers#{i}#_disabled_" in overlay]
        assert disabled == ["StatsHandler", "LossProgress"]


def test_signal_to_one_process(server, first, tmp_path):
    """A signal to one of two processes stops both at the same step, and the same command carries on."""
    settings = {**SIZES, "train_size": 60, "epochs": 1, "output_dir": tmp_path}
    start = partial(server.start_processes, 2, "train_autoencoder", "multi_gpu_train_autoencoder", "smoke", **settings)
    commands = start()
    await_that(lambda: "[2/10]" in commands[0].output or commands[0].poll() is not None, "the second step")
    if hasattr(os, "memfd_create"):  # on one machine gradients are averaged in memory that both have
        assert all("memfd:gradients" in Path(f"/proc/{command.pid}/maps").read_text() for command in commands)
    commands[1].send(signal.SIGTERM)
    assert [command.wait() for command in commands] == [128 + signal.SIGTERM] * 2, commands[0].output
    assert "the same command carries on" in commands[0].output
    (within,) = (tmp_path / "checkpoints").glob("checkpoint_epoch=0_iteration=*.pt")
    assert [command.wait() for command in start()] == [0, 0] and not within.exists()


# of one volume each, where three processes take two passes
@pytest.mark.parametrize(("processes", "passes"), [(2, 1), (3, 2)])
def test_first_stage(run, first, processes, passes):
    folder = run(processes, "train_autoencoder", accumulation_steps=passes, **SIZES)
    assert_same_training(folder, first, "model_autoencoder.pt", 1e-3)
    assert_same_norms(folder, first)


# on several machines the gradients go through gloo, on one through memory that the processes share
@pytest.mark.parametrize(("processes", "passes", "machines"), [(2, 1, 1), (3, 2, 3)])
def test_second_stage(run, first, second, processes, passes, machines):
    settings = {**SIZES, **UNET, "accumulation_steps": passes, "machines": machines}
    folder = run(processes, "train_diffusion", autoencoder_path=first / "model_autoencoder.pt", **settings)
    assert_same_training(folder, second, "model.pt", 5e-3)
    assert_same_norms(folder, second)


def test_resume_by_other_number(run, first, tmp_path):
    """A training of two processes carries on in three, and ends as one that was never stopped."""
    run(2, "train_autoencoder", output_dir=tmp_path, device="cpu", **{**SIZES, "epochs": 1})
    run(3, "train_autoencoder", output_dir=tmp_path, resume=True, **SIZES)
    names = {path.name for path in (tmp_path / "checkpoints").glob("checkpoint_*")}
    assert names == {"checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"}
    # the schedule of the first epoch was a shorter one's, so that the weights are others; the curves go on
    assert {key for key in curves(first) if "validation" not in key[0]} <= curves(tmp_path).keys()


def test_inference(run, second):
    """The same files byte for byte, and the share of a process that was lost is made by a rerun."""
    settings = {"num_samples": 5, "model_path": second / "model.pt", "precision": "float32", **UNET}
    one, two = run(1, "inference", **settings), run(2, "inference", **settings)
    names = {path.name for path in one.iterdir()}
    assert {f"sphere_{i:05d}.nii.gz" for i in range(5)} | {"samples.csv", "preview.png"} < names
    for name in names - {"report.html", "run.json"}:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    for i in (1, 3):  # the second process's
        (two / f"sphere_{i:05d}.nii.gz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in two.glob("sphere_*")}
    run(2, "inference", output_dir=two, **settings)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(two.glob("sphere_*"))) == 5 and not (two / "earlier_1").exists()
    with (two / "samples.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"sphere_{i:05d}.nii.gz" for i in range(5)]


def test_evaluation(run, first, second):
    """One table, of the same volumes in the same order."""
    settings = {"num_samples": 5, "test_size": 5, "precision": "float32", **UNET}
    settings |= {"model_path": second / "model.pt", "autoencoder_path": first / "model_autoencoder.pt"}
    one, two = (read_json(run(processes, "evaluate", **settings) / "fidelity.json") for processes in (1, 2))
    assert two["volumes"] == one["volumes"] and two["real"] == one["real"]
    assert two["reconstruction"].keys() == one["reconstruction"].keys()
    for name, value in one["reconstruction"].items():
        if "correlation" not in name:
            assert two["reconstruction"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_lost_process(first, tmp_path):
    """One of two processes is killed; torchrun starts them again, and the training ends as one that never was."""
    configs = ("train_autoencoder", "multi_gpu_train_autoencoder", "smoke")
    words = arguments(configs, output_dir=tmp_path, **SIZES)
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node=2", "--max-restarts=1"]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen([*launcher, "-m", "monai.bundle", *words], cwd=BUNDLE, stdout=output, stderr=output)
    checkpoint = tmp_path / "checkpoints" / "checkpoint_epoch=1.pt"
    await_that(lambda: checkpoint.exists() or process.poll() is not None, "the first checkpoint")
    workers = [child for child in psutil.Process(process.pid).children() if "monai.bundle" in child.cmdline()]
    workers[-1].kill()
    assert process.wait() == 0, (tmp_path / "output.txt").read_text()
    assert "carrying on from" in (tmp_path / "output.txt").read_text()
    assert_same_training(tmp_path, first, "model_autoencoder.pt", 1e-3)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_whole(monkeypatch, processes):
    """Shares of a batch, a set and a draw: together they are all, in order, and none is there twice."""
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: processes)
    data, found, drawn = list(range(20)), [], []
    batches = {rank: [] for rank in range(processes)}
    for rank in range(processes):
        monkeypatch.setattr(distributed.idist, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        batches[rank] = list(distributed.ShardedBatchSampler(data, 6, shuffle=True, drop_last=True))
        found.append(list(distributed.take_share(data)))
        torch.manual_seed(0)
        drawn.append(distributed.randn_share(torch.empty(12 // processes, 2)))
    torch.manual_seed(0)
    alone = list(BatchSampler(RandomSampler(data), 6, drop_last=True))
    shares = [list(zip(*(batches[rank][i] for rank in range(processes)), strict=True)) for i in range(len(alone))]
    assert [list(itertools.chain(*share)) for share in shares] == alone
    assert sorted(itertools.chain(*found)) == data
    whole = torch.empty(12, 2)
    for rank in range(processes):
        whole[rank::processes] = drawn[rank]
    torch.manual_seed(0)
    assert torch.equal(whole, torch.randn(12, 2))


def test_even_shares(monkeypatch):
    """Shares of one length, of which the first items fill up what is missing."""
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed.idist, "get_rank", lambda rank=rank: rank)
        shares.append(list(distributed.take_share(range(7), even=True)))
    assert np.array(shares).T.ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
