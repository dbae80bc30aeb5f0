"""The bundle's commands as processes to be killed, and what they left.

Most of a short command is its imports. So one process makes them, and each command is a fork of it that goes on
as ``python -m monai.bundle`` does: with its own main module, signals, exit code and end of the interpreter.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import re
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
CARRY_ON = re.compile("the same command carries on|to go on, run the same command again")  # after a signal
PATIENCE = 300.0  # seconds, more than anything here takes on a very busy machine
IMPORTS = (
    *("ignite.metrics", "matplotlib.figure", "monai.bundle", "monai.engines", "monai.handlers", "monai.inferers"),
    *("monai.networks.nets", "nibabel", "scipy.stats", "torch.utils.tensorboard"),
)


def arguments(configs: Sequence[str], **settings: Any) -> list[str]:
    """Make the arguments of ``python -m monai.bundle`` that run configs merged in this order."""
    files = "[" + ",".join(f"'configs/{name}.json'" for name in configs) + "]"
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return ["run", "--config_file", files, *options]


def await_that(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until a condition holds, at most so many seconds, and return what it returned."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.002)
    return value


def read_points(folder: Path) -> list[tuple[str, int, Any]]:
    """Read the points and pictures of TensorBoard's files, doubled ones too, but for what is a matter of time."""
    points = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value") and "volumes_per_s" not in value.tag:
                    points.append((value.tag, event.step, value.simple_value))
                elif value.HasField("image"):
                    points.append((value.tag, event.step, value.image.encoded_image_string))
    return sorted(points, key=lambda point: point[:2])


def flatten(state: Any, name: str = "") -> dict[str, Any]:
    """Flatten what ``torch.save`` wrote: values by their place."""
    if isinstance(state, Mapping):
        state = list(state.items())
        return {key: leaf for k, value in state for key, leaf in flatten(value, f"{name}/{k}").items()}
    if isinstance(state, (list, tuple)):
        return {key: leaf for i, value in enumerate(state) for key, leaf in flatten(value, f"{name}/{i}").items()}
    if isinstance(state, torch.Tensor):
        return {name: (state.dtype, state.shape, state.numpy().tobytes())}
    return {name: state}


def read_training(folder: Path) -> dict[str, Any]:
    """Read all that a training left: each file of weights and checkpoint, and the curves."""
    left: dict[str, Any] = {"points": read_points(folder / "tensorboard")}
    for path in folder.rglob("*.pt"):
        state = torch.load(path)
        state.pop("events", None)  # the curves are in several files
        left[path.relative_to(folder).as_posix()] = flatten(state)
    return left


def curves(folder: Path) -> dict[tuple[str, int], float]:
    """Read the curves of a training: values by tag and step."""
    points = read_points(folder / "tensorboard")
    return {(tag, step): value for tag, step, value in points if isinstance(value, float)}


def assert_same_training(folder: Path, expected: Path, weights: str, tolerance: float) -> None:
    """Another order of sums apart, the weights and the curves are the same, and no point is missing or doubled."""
    there, wanted = (torch.load(path / weights) for path in (folder, expected))
    assert there.keys() == wanted.keys()
    for name, value in there.items():
        assert torch.allclose(value.double(), wanted[name].double(), atol=tolerance), name
    points, wanted_points = curves(folder), curves(expected)
    assert points.keys() == wanted_points.keys() and len(read_points(folder / "tensorboard")) == len(
        read_points(expected / "tensorboard")
    )
    for key, value in wanted_points.items():
        # a correlation of five untrained reconstructions is noise
        if "correlation" not in key[0]:
            assert math.isclose(points[key], value, rel_tol=1e-3, abs_tol=1e-5), key


def find_differences(folder: Path, expected: Path) -> list[str]:
    """Name the files, or the curves, of a training that differ from another's by a bit, or are there once only."""
    left, wanted = read_training(folder), read_training(expected)
    return [name for name in {**left, **wanted} if left.get(name) != wanted.get(name)]


class Command:
    """A command that is running, or has ended.

    Attributes:
        pid: its process, and its process group.
    """

    def __init__(self, server: CommandServer, pid: int, output: Path) -> None:
        self.server = server
        self.pid = pid
        self._output = output
        self._code: int | None = None

    @property
    def output(self) -> str:
        """What it wrote so far, both streams together."""
        return self._output.read_text(errors="replace")

    def poll(self) -> int | None:
        """Return its exit code, or ``None`` while it runs; that of a process killed by a signal is negative."""
        if self._code is None:
            self._code = self.server.ask({"poll": self.pid})
        return self._code

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        await_that(lambda: self.poll() is not None, f"the end of the command\n{self.output}")
        assert self._code is not None
        return self._code

    def send(self, number: int, group: bool = False) -> None:
        """Send it a signal, or to its whole process group, as a terminal does."""
        assert self.poll() is None, f"ended before the signal:\n{self.output}"
        (os.killpg if group else os.kill)(self.pid, number)

    def kill_after(self, seconds: float) -> bool:
        """Kill it after some seconds; tell whether it was still running."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def kill_when(self, condition: Callable[[], Any], what: str) -> None:
        """Kill it as soon as a condition holds."""
        await_that(lambda: condition() or self.poll() is not None, f"{what}\n{self.output}")
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


class CommandServer:
    """Starts commands from the bundle's folder.

    Args:
        folder: where the output of the commands goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        # MLflow reports its use to its makers, but from tests
        left_out = ("PYTHONPATH", "PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            cwd=BUNDLE,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # the imports are made

    def ask(self, question: dict[str, Any]) -> Any:
        """Send a question to the process that forks, and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        *configs: str,
        most_bytes: int = -1,
        dies_of_it: bool = False,
        offline: bool = False,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Command:
        """Start a command.

        Args:
            configs: config and overlays.
            most_bytes: size that no file of it can exceed; -1 for any.
            dies_of_it: whether a file that would be larger kills it, in the middle of the write, instead of failing.
            offline: whether no other machine can be reached; each attempt is a line of its output.
            environment: variables to set.
            settings: keys on the command line.
        """
        self.count += 1
        output = self.folder / f"command_{self.count}.txt"
        output.touch()
        words = arguments(configs, **settings)
        question = {"start": words, "output": str(output), "most_bytes": most_bytes, "dies_of_it": dies_of_it}
        question |= {"offline": offline, "environment": dict(environment or {})}
        return Command(self, self.ask(question), output)

    def start_processes(self, count: int, *configs: str, machines: int = 1, **settings: Any) -> list[Command]:
        """Start so many processes of a command, as torchrun does on one machine, or on several in equal parts."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        local = count // machines
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(local)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank % local)} for rank in range(count)]
        return [self.start(*configs, environment={**shared, **rank}, **settings) for rank in ranks]

    def run(self, *configs: str, **settings: Any) -> Command:
        """Run a command to its end."""
        command = self.start(*configs, **settings)
        command.wait()
        return command

    def close(self) -> None:
        """End the process that forks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Say what is looked up or connected to, and fail as a machine without a network does."""
    # the address of a socket between processes of this machine is a file's name
    if event == "socket.getaddrinfo" or (
        event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple)
    ):
        print(f"NETWORK {event} {arguments[:2]}", flush=True)
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


def _become(
    start: Sequence[str],
    output: str,
    most_bytes: int,
    dies_of_it: bool,
    offline: bool,
    environment: Mapping[str, str],
) -> None:
    """Make this fork what a shell would have started."""
    os.environ.update(environment)
    if offline:
        sys.addaudithook(_refuse_network)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    files = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, file in ((0, files[0]), (1, files[1]), (2, files[1])):
        os.dup2(file, target)
    if most_bytes >= 0:
        # Python ignores the signal, and a write then fails as it does on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dies_of_it else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv[1:] = start


def _serve() -> None:
    """Answer questions until there are no more; return in a fork that has become a command."""
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            _become(**question)
            return
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    for name in IMPORTS:
        importlib.import_module(name)
    sys.path[0] = str(BUNDLE)
    _serve()
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
