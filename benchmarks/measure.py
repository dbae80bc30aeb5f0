"""How things are measured: side by side in one process, or as whole commands with their peak memory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
RELEASED = BUNDLE / "models"
RUNS = BUNDLE / "runs" / "benchmark"
sys.path.insert(1, str(BUNDLE))  # the bundle is used from its folder, not installed


@dataclass
class Row:
    """One measurement: a row of the table.

    Args:
        section: the part of the benchmark it belongs to.
        what: what was measured.
        unit: of ``ours``, ``reference`` and ``limit``.
        ours: this bundle's figure; less is better.
        reference: the reference's, where there is one.
        limit: the least that is possible, where it is known.
        least_ratio: how many times less than the reference is aimed at.
        most: the most that ``ours`` may be.
        note: what else there is to know.
        points: (size, seconds), where ``ours`` was fitted to several measurements.
    """

    section: str
    what: str
    unit: str
    ours: float
    reference: float | None = None
    limit: float | None = None
    least_ratio: float | None = None
    most: float | None = None
    note: str = ""
    points: Sequence[tuple[float, float]] = ()

    @property
    def ratio(self) -> float | None:
        """How many times less than the reference."""
        return None if self.reference is None else self.reference / self.ours

    @property
    def share(self) -> float | None:
        """Share of the limit that is reached."""
        return None if self.limit is None else self.limit / self.ours

    @property
    def misses(self) -> list[str]:
        """The aims that do not hold."""
        missed = []
        if self.ratio is not None and self.least_ratio is not None and self.ratio < self.least_ratio:
            missed.append(f"{self.ratio:.1f} times instead of {self.least_ratio:g}")
        if self.most is not None and self.ours > self.most:
            missed.append(f"{self.ours:.3g} {self.unit} instead of {self.most:g}")
        return missed

    def as_dict(self) -> dict[str, Any]:
        """Return everything about the row, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "share": self.share, "misses": self.misses}


def time_side_by_side(functions: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Time functions in turn, round after round, so that a drift of the machine meets them all.

    Args:
        functions: what to call, by name.
        rounds: rounds that count, after one that warms up.

    Returns:
        The median seconds of a call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def alternate(ours: Callable[[], Any], script: str, rounds: int = 3) -> tuple[float, float, float]:
    """Time a function and a reference in turn, the reference in a process of its own.

    ``keep_freed_memory`` holds for a whole process, and would speed the reference up as well.

    Args:
        ours: what to call.
        script: the reference's script, which prints the seconds of a step.
        rounds: rounds that count, after one call of ``ours`` that warms up.

    Returns:
        The median seconds of a call of ``ours``, of the reference's step, and the reference's peak memory in GB.
    """
    ours()
    seconds, reference, memory = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        ours()
        seconds.append(time.perf_counter() - start)
        output, _, peak = run_command([sys.executable, str(Path(__file__).with_name(script))])
        reference.append(float(output.split()[-1]))
        memory.append(peak)
    return statistics.median(seconds), statistics.median(reference), max(memory)


def load_config(*names: str, initialize: bool = True, **settings: Any) -> ConfigParser:
    """Read a config of the bundle and its overlays, as ``monai.bundle run`` does, and run its ``initialize`` list."""
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in names],
            bundle_root=str(BUNDLE),
            workflow_type="train",
            output_dir=tempfile.mkdtemp(),
            **settings,
        )
        if initialize:
            workflow.initialize()
    return workflow.parser


def bundle_command(*names: str, **settings: Any) -> list[str]:
    """Make the command that runs a config and its overlays; output goes to a folder of its own unless it is named."""
    if "output_dir" not in settings:
        settings["output_dir"] = tempfile.mkdtemp()
    files = "[" + ",".join(f"'configs/{name}.json'" for name in names) + "]"
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *options]


def run_command(command: Sequence[str], until: str | None = None) -> tuple[str, float, float]:
    """Run a command from the bundle's folder.

    Args:
        command: program and arguments.
        until: a regular expression; the command is ended as soon as its output matches.

    Returns:
        Its output, the seconds from its start to its end or to the match, and the peak of its memory (resident set) in
        GB.

    Raises:
        RuntimeError: when the command fails, or ends without the match.
    """
    # progress bars tell how far a command is; run.py hides its own
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    start = time.perf_counter()
    process = psutil.Popen(command, cwd=BUNDLE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # Polled, for a child's peak as the system accounts it begins with that of the process that started it.
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            with contextlib.suppress(psutil.Error):
                peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, matched = b"", False
    while piece := os.read(process.stdout.fileno(), 65536):
        output += piece
        if until and re.search(until.encode(), output):
            matched = True
            break
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if matched:
        process.kill()
    if (process.wait() != 0 and not matched) or (until and not matched):
        raise RuntimeError(f"{' '.join(command)} failed:\n{output.decode()[-3000:]}")
    return output.decode(), seconds, peak / 1e9
