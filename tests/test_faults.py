"""What kills, signals, full disks and damaged files leave, and that the same command carries on from there.

``make soak`` does the same at random moments, many times.
"""

import ctypes
import logging
import shutil
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from commands import CARRY_ON, Command, await_that, find_differences
from conftest import SMALL
from torch.utils.data._utils import signal_handling

from scripts import command_line
from scripts.checks import PlainError
from scripts.training.resume import find_checkpoint

# As small as it gets, so that an epoch takes a fraction of a second. The networks' weights fit any size of volume.
FIRST = {**SMALL, "epochs": 3, "val_interval": 2, "keep_checkpoints": 2}
SECOND = {**SMALL, "epochs": 4, "val_interval": 2, "diffusion_def#channels": "[64]"}


def assert_same(folder: Path, expected: Path) -> None:
    """The two trainings left the same, to the last bit, and no leftovers."""
    assert find_differences(folder, expected) == []
    assert [path.name for path in folder.rglob(".partial-*")] == []


def assert_one_error(command: Command, *words: str) -> None:
    """The command failed with one line that says why."""
    assert command.wait() == 1
    lines = [line for line in command.output.splitlines() if "rror" in line]
    assert len(lines) == 1, command.output
    assert "error: " in lines[0] and all(word in lines[0] for word in words), command.output
    assert "Traceback" not in command.output


def assert_stopped(command: Command, number: signal.Signals) -> None:
    """The command ended by a signal, in good order, with one line that says how to carry on."""
    assert command.wait() == 128 + number
    lines = [line for line in command.output.splitlines() if line.strip()]
    assert sum(CARRY_ON.search(line) is not None for line in lines) == 1, command.output
    assert CARRY_ON.search(lines[-1]) and "Traceback" not in command.output


@pytest.fixture(scope="module")
def start(server, small_autoencoder):
    """Start a training of the second stage."""

    def start(folder: Path, **more: Any) -> Command:
        settings = {**SECOND, "autoencoder_path": small_autoencoder, "output_dir": folder, **more}
        return server.start("train_diffusion", "smoke", **settings)

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> Path:
    """What a training of the second stage leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    command = start(folder)
    assert command.wait() == 0, command.output
    return folder


def checkpoint(folder: Path, epoch: int) -> Path:
    return folder / "checkpoints" / f"checkpoint_epoch={epoch}.pt"


def assert_dies_in_save(command: Command, folder: Path) -> None:
    """The command was killed in the middle of the write of a file."""
    assert command.wait() == -signal.SIGXFSZ, command.output
    (partial,) = folder.rglob(".partial-*")
    assert partial.stat().st_size > 0


def test_killed_training_carries_on(start, whole, tmp_path):
    """Killed in the first save, between two epochs and in a validation, a training ends as one that never was."""
    some = {"most_bytes": 2_000_000, "dies_of_it": True}
    assert_dies_in_save(start(tmp_path, **some), tmp_path)
    assert not list(tmp_path.rglob("checkpoint_*.pt"))
    start(tmp_path).kill_when(checkpoint(tmp_path, 1).exists, "the first checkpoint")
    assert_dies_in_save(start(tmp_path, **some), tmp_path)
    last = start(tmp_path)
    assert last.wait() == 0, last.output
    assert "carrying on from" in last.output
    assert_same(tmp_path, whole)


def test_finished_training_stops(start, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "again")
    command = start(folder)
    assert command.wait() == 0, command.output
    assert "is complete: 4 epochs" in command.output and "encoding" not in command.output
    assert_same(folder, whole)


def test_signals(start, whole, tmp_path):
    """Ctrl-C and SIGTERM leave the state within the epoch, and the rerun goes on from that step."""
    for number, epoch in ((signal.SIGINT, 1), (signal.SIGTERM, 2)):
        command = start(tmp_path)
        await_that(lambda c=command, e=epoch: checkpoint(tmp_path, e).exists() or c.poll() is not None, "a checkpoint")
        command.send(number)
        assert_stopped(command, number)
    last = start(tmp_path)
    assert last.wait() == 0, last.output
    assert_same(tmp_path, whole)


def test_signal_before_training(start, tmp_path):
    """There is nothing to save yet."""
    command = start(tmp_path)
    await_that(lambda: "PyTorch" in command.output or command.poll() is not None, "the first line")
    command.send(signal.SIGINT)
    assert_stopped(command, signal.SIGINT)


def test_full_disk(start, whole, tmp_path):
    """A disk that is full ends the training with one line; what was written before is whole."""
    folder = shutil.copytree(whole, tmp_path / "full")
    for path in folder.rglob("*.pt"):
        if path != checkpoint(folder, 1):
            path.unlink()
    before = checkpoint(folder, 1).read_bytes()
    assert_one_error(start(folder, most_bytes=2_000_000), "can't be written", "File too large")
    assert list(folder.rglob("*.pt")) == [checkpoint(folder, 1)]
    assert checkpoint(folder, 1).read_bytes() == before
    assert not list(folder.rglob(".partial-*"))


def test_damaged_checkpoints(whole, tmp_path, caplog):
    """Truncated and altered checkpoints are set aside, and the newest good one is found."""
    folder = shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    newest = folder / "checkpoint_epoch=4.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    altered = folder / "checkpoint_epoch=3.pt"
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    (folder / "checkpoint_epoch=5.pt").touch()
    record: Any = SimpleNamespace(values=torch.load(folder / "checkpoint_epoch=2.pt")["record"])
    assert find_checkpoint(folder, "auto", record) == folder / "checkpoint_epoch=2.pt"
    aside = {f"damaged-checkpoint_epoch={epoch}.pt" for epoch in (3, 4, 5)}
    assert {path.name for path in folder.glob("damaged-*")} == aside
    assert all(any(name in message for message in caplog.messages) for name in aside)


def test_data_workers(server, tmp_path):
    """A data worker that is killed ends the training with one error, and workers die with a training that is killed."""

    def start() -> tuple[Command, psutil.Process]:
        # an epoch so long that it outlasts the test
        settings = {**FIRST, "train_size": 4000, "num_workers": 1, "output_dir": tmp_path}
        command = server.start("train_autoencoder", "smoke", **settings)
        await_that(lambda: "[2/1000]" in command.output or command.poll() is not None, "the second step")
        (worker,) = psutil.Process(command.pid).children()
        return command, worker

    command, worker = start()
    worker.kill()
    assert_one_error(command, "DataLoader worker", "run the same command again")

    command, worker = start()
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    await_that(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the end of the worker")


def test_worker_lost_while_its_error_is_shown(capsys, monkeypatch):
    """The signal may come while the error of the closed socket is shown, or later: only one error is printed."""

    def raise_loss() -> None:  # as torch does when a worker is gone
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(signal_handling, "_error_if_any_worker_fails", raise_loss)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    # as on the command line, but for what else of this process it would change
    monkeypatch.setattr(command_line, "on_command_line", lambda: True)
    monkeypatch.setattr(command_line, "SIGNALS", ())
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for module in (sys, threading):
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        command_line.end_plainly()
        signal_handling._set_SIGCHLD_handler()  # as the first data workers do
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            signal.raise_signal(signal.SIGCHLD)
        # C calls one after the other, as the interpreter calls the hook: Python runs no signal handler in between
        tell_of_end = partial(getattr(ctypes.CDLL(None), "raise"), signal.SIGCHLD)
        show = partial(sys.excepthook, PlainError, PlainError("the first error"), None)
        tuple(map(partial.__call__, [tell_of_end, show]))
        signal.raise_signal(signal.SIGCHLD)  # nor is another raised until the process ends
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert capsys.readouterr().err == "error: the first error\n"


def test_stopped_autoencoder(server, tmp_path):
    """The first stage, killed and then stopped by Ctrl-C at the terminal, which data workers get too."""

    def start(folder: str, **more: Any) -> Command:
        return server.start("train_autoencoder", "smoke", **FIRST, output_dir=tmp_path / folder, **more)

    folder = tmp_path / "stopped"
    start("stopped", num_workers=1).kill_when(checkpoint(folder, 1).exists, "the first checkpoint")
    command = start("stopped", num_workers=1)
    await_that(lambda: checkpoint(folder, 2).exists() or command.poll() is not None, "the second checkpoint")
    command.send(signal.SIGINT, group=True)
    assert_stopped(command, signal.SIGINT)
    command = start("stopped", num_workers=1)
    assert command.wait() == 0, command.output

    command = start("whole")
    assert command.wait() == 0, command.output
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {name for name in names if not name.startswith("best")} == {"checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt"}
    assert len(names) == 3
    assert_same(folder, tmp_path / "whole")


def test_killed_inference(server, whole, tmp_path):
    """Volumes are whole or not there; a rerun writes the missing ones; another run's are set aside."""
    settings = {"image_size": 32, "precision": "float32", "diffusion_def#channels": "[64]"}
    settings |= {"model_path": whole / "model.pt", "sample_batch_size": 1}

    def start(name: str, **more: Any) -> Command:
        return server.start("inference", "smoke", **settings, output_dir=tmp_path / name, **more)

    command = start("whole")
    assert command.wait() == 0, command.output
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {f"sphere_{i:05d}.nii.gz" for i in range(4)} | {"samples.csv", "preview.png", "report.html"} < set(wanted)

    folder = tmp_path / "killed"
    first = folder / "sphere_00000.nii.gz"
    start("killed", seed=1).kill_when(first.exists, "the first volume")
    other = {path.name: path.read_bytes() for path in folder.glob("sphere_*")}
    assert_dies_in_save(start("killed", most_bytes=len(wanted[first.name]) // 2, dies_of_it=True), folder)
    assert not list(folder.glob("sphere_*"))
    start("killed").kill_when(first.exists, "the first volume")
    there = {path: path.stat().st_mtime_ns for path in folder.glob("sphere_*")}
    assert all(wanted[path.name] == path.read_bytes() for path in there)

    last = start("killed")
    assert last.wait() == 0, last.output
    assert {path: path.stat().st_mtime_ns for path in there} == there
    dated = ("report.html", "run.json")
    for name in wanted.keys() - dated:
        assert (folder / name).read_bytes() == wanted[name], name
    left = {path.name for path in folder.iterdir()}
    assert left == {*wanted, "earlier_1"}
    aside = {path.name: path.read_bytes() for path in (folder / "earlier_1").iterdir()}
    assert other.items() <= aside.items()


def test_without_network(server, whole, small_autoencoder, tmp_path):
    """No command looks up or connects to another machine, and each works where none can be reached."""
    weights = {"autoencoder_path": small_autoencoder, "model_path": whole / "model.pt"}
    sizes = {"image_size": 32, "precision": "float32"}
    unet = {"diffusion_def#channels": "[64]", "num_inference_steps": 2}
    for configs, settings in (
        (("data", "smoke"), {}),
        (("train_autoencoder", "smoke"), {**FIRST, "epochs": 1, "val_interval": 1, "num_workers": 1}),
        (("train_diffusion", "smoke"), {**SECOND, "autoencoder_path": small_autoencoder, "tracking": "mlflow"}),
        (("inference", "smoke"), {**unet, "model_path": whole / "model.pt"}),
        (("evaluate", "smoke"), {**unet, **weights}),
    ):
        command = server.start(*configs, offline=True, **{**sizes, **settings, "output_dir": tmp_path / configs[0]})
        assert command.wait() == 0 and "NETWORK" not in command.output, command.output
    lookup = "$__import__('socket').create_connection(('example.org', 80))"
    command = server.start("data", "smoke", offline=True, output_dir=lookup)
    assert command.wait() == 1 and "NETWORK socket.getaddrinfo ('example.org', 80)" in command.output
