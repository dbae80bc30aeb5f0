"""Kills at random moments, many times, and long runs: how often anything is lost, and what grows (``make soak``)."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from commands import BUNDLE, CARRY_ON, Command, CommandServer, await_that, find_differences

TINY = {"image_size": 32, "precision": "float32", "train_size": 8, "train_batch_size": 4, "val_size": 2}
UNET = {"diffusion_def#channels": "[64]"}
DATED = ("report.html", "run.json")


class Soak:
    """Does the same to a command again and again, and counts.

    Args:
        folder: for what the commands write.
        seed: of the random moments.
        share: share of the times that are asked for; 1 for all.
    """

    def __init__(self, folder: Path, seed: int, share: float) -> None:
        self.folder = folder
        self.share = share
        self.random = random.Random(seed)
        self.server = CommandServer(folder)
        self.rows: list[dict[str, Any]] = []
        self.growth: list[dict[str, Any]] = []
        self.runs = 0

    def fresh(self) -> Path:
        """Return a folder that is not there yet."""
        self.runs += 1
        return self.folder / f"run_{self.runs}"

    def times(self, count: int) -> int:
        """Return how often to do what the whole soak does so often."""
        return max(1, round(count * self.share))

    def note(self, fault: str, tried: int, lost: int) -> None:
        """Add a row to the table, and show it."""
        self.rows.append({"fault": fault, "tried": tried, "lost": lost})
        print(f"{fault:<70} {tried:>6} {lost:>5}", flush=True)

    def undisturbed(self, start: Callable[..., Command]) -> tuple[Path, float]:
        """Run a command that nothing disturbs; return what it wrote, and how long it took."""
        folder, begin = self.fresh(), time.monotonic()
        command = start(folder)
        assert command.wait() == 0, command.output
        return folder, time.monotonic() - begin

    def chain(
        self,
        what: str,
        start: Callable[..., Command],
        differs: Callable[[Path], Any],
        disturb: Callable[[Path, Callable[..., Command]], bool],
        count: int,
    ) -> None:
        """Disturb a command, rerun and disturb it again until it ends, from the start again so many times in all.

        Args:
            what: the fault.
            start: starts the command for a folder.
            differs: tells what differs in a folder from an undisturbed run's.
            disturb: starts the command and disturbs it; tells whether that ended it, or it was complete before.
            count: how often to disturb.
        """
        tried = lost = 0
        count = self.times(count)
        while tried < count:
            folder, since = self.fresh(), tried
            try:
                complete = False
                while tried < count and not complete:
                    complete = not disturb(folder, start)
                    tried += not complete
                if not complete:
                    command = start(folder)
                    assert command.wait() == 0, command.output
                differences = differs(folder)
                assert not differences, differences
            except AssertionError as error:
                lost += max(1, tried - since)
                print(f"{what}: {folder}\n{error}", file=sys.stderr)
                tried = max(tried, since + 1)
            else:
                shutil.rmtree(folder)
        self.note(what, tried, lost)

    def kill(self, seconds: float) -> Callable[[Path, Callable[..., Command]], bool]:
        """Kill at a random moment of so many seconds."""

        def disturb(folder: Path, start: Callable[..., Command]) -> bool:
            command = start(folder)
            killed = command.kill_after(self.random.uniform(0, seconds))
            assert killed or command.wait() == 0, command.output
            return killed

        return disturb

    def kill_in_save(self, seconds: float, most: int) -> Callable[[Path, Callable[..., Command]], bool]:
        """Kill at a random byte of a file, in a run that carries on from a random moment."""

        def disturb(folder: Path, start: Callable[..., Command]) -> bool:
            self.kill(seconds)(folder, start)
            command = start(folder, most_bytes=self.random_bytes(most), dies_of_it=True)
            assert command.wait() in (0, -signal.SIGXFSZ), command.output
            return command.wait() != 0

        return disturb

    def random_bytes(self, most: int) -> int:
        """Draw a number of bytes; small ones, at which curves end, as often as large ones, at which checkpoints do."""
        return round(40_000 * (most / 40_000) ** self.random.random())  # the output itself takes less

    def interrupt(self, seconds: float) -> Callable[[Path, Callable[..., Command]], bool]:
        """Send Ctrl-C or SIGTERM at a random moment, once the command is under way."""

        def disturb(folder: Path, start: Callable[..., Command]) -> bool:
            number = self.random.choice([signal.SIGINT, signal.SIGTERM])
            command = start(folder)
            await_that(lambda: "PyTorch" in command.output or command.poll() is not None, "the first line")
            end = time.monotonic() + self.random.uniform(0, seconds)
            while command.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            if command.poll() is None:
                os.kill(command.pid, number)
            code = command.wait()
            assert "Traceback" not in command.output, command.output
            if "to look at, open" in command.output:  # its work was done, and Python on its way out
                return False
            assert code == 128 + number, (code, command.output)
            assert len(CARRY_ON.findall(command.output)) == 1, command.output
            return True

        return disturb

    def fill_disk(self, most: int) -> Callable[[Path, Callable[..., Command]], bool]:
        """Let no file exceed a random size: the command has to end with one line, and leave no partial file."""

        def disturb(folder: Path, start: Callable[..., Command]) -> bool:
            command = start(folder, most_bytes=self.random_bytes(most))
            if command.wait() == 0:
                return False
            assert command.wait() == 1, command.output
            assert command.output.count("error: ") == 1 and "Traceback" not in command.output, command.output
            assert not list(folder.rglob(".partial-*"))
            return True

        return disturb

    def damage(self, seconds: float) -> Callable[[Path, Callable[..., Command]], bool]:
        """Kill at a random moment, and truncate or alter the newest checkpoint."""

        def disturb(folder: Path, start: Callable[..., Command]) -> bool:
            if not self.kill(seconds)(folder, start):
                return False
            found = sorted((folder / "checkpoints").glob("checkpoint_*.pt"), key=lambda path: path.stat().st_mtime)
            if found:
                content = bytearray(found[-1].read_bytes())
                place = self.random.randrange(len(content))
                if self.random.random() < 0.5:
                    content = content[:place]
                else:
                    content[place] ^= 1 << self.random.randrange(8)
                found[-1].write_bytes(content)
            return True

        return disturb

    def watch(self, command: Command) -> dict[str, int]:
        """Return what a command holds: its resident memory in MB, open files, child processes."""
        process = psutil.Process(command.pid)
        # not what is its own alone: that depends on whether a data worker, which shares its pages, is there just then
        memory = process.memory_info().rss
        return {
            "memory_mb": round(memory / 1e6),
            "open_files": process.num_fds(),
            "processes": len(process.children(recursive=True)),
        }

    def long_run(self, what: str, start: Callable[..., Command], epochs: int) -> None:
        """Run many epochs, and note what the training holds at a quarter of them and near the end."""
        folder = self.fresh()
        command = start(folder, epochs=epochs, keep_checkpoints=1, val_interval=5)

        def reached(epoch: int) -> bool:
            names = [path.stem for path in (folder / "checkpoints").glob("checkpoint_epoch=*.pt")]
            return command.poll() is not None or any(int(name.split("=")[1]) >= epoch for name in names)

        held = []
        for epoch in (epochs // 4, epochs * 3 // 4):
            await_that(lambda e=epoch: reached(e), f"epoch {epoch}", patience=3600)
            # the most over a few epochs: what a step takes comes and goes
            seen = []
            while len(seen) < 100:
                assert command.poll() is None, command.output
                seen.append(self.watch(command))
                time.sleep(0.02)
            held.append({"at": f"{what}, epoch {epoch}", **{name: max(one[name] for one in seen) for name in seen[0]}})
        assert command.wait() == 0, command.output
        self.growth += held
        for row in held:
            print(row, flush=True)
        shutil.rmtree(folder)

    def many_samples(self, what: str, start: Callable[..., Command], counts: list[int]) -> None:
        """Run with more and more volumes, and note the most memory."""
        for count in counts:
            command, most, folder = start(folder := self.fresh(), num_samples=count), 0, folder
            begin = time.monotonic()
            while command.poll() is None:
                try:
                    most = max(most, self.watch(command)["memory_mb"])
                except psutil.Error:
                    continue
                time.sleep(0.2)
            assert command.wait() == 0, command.output
            self.growth.append({"at": f"{what}, num_samples={count}", "memory_mb": most})
            print(self.growth[-1], f"{time.monotonic() - begin:.0f} s", flush=True)
            shutil.rmtree(folder)


def same_training(expected: Path) -> Callable[[Path], list[str]]:
    """Make a comparison with a training, to the last bit; files that were set aside as damaged don't count."""

    def differs(folder: Path) -> list[str]:
        for path in folder.rglob("damaged-*"):
            path.unlink()
        return find_differences(folder, expected)

    return differs


def same_files(expected: Path) -> Callable[[Path], list[str]]:
    """Make a comparison with the files of a folder: all bytes but of those that tell the time."""

    def differs(folder: Path) -> list[str]:
        left, wanted = (
            {path.name: path.read_bytes() for path in root.iterdir() if path.name not in DATED}
            for root in (folder, expected)
        )
        return [name for name in {**left, **wanted} if left.get(name) != wanted.get(name)]

    return differs


def soak(folder: Path, seed: int, share: float, only: str) -> Soak:
    """Do everything, or the one part that is asked for."""
    this = Soak(folder, seed, share)
    server = this.server

    def train_autoencoder(folder: Path, **more: Any) -> Command:
        settings = {**TINY, "epochs": 4, "output_dir": folder, **more}
        return server.start("train_autoencoder", "smoke", **settings)

    autoencoder, seconds = this.undisturbed(train_autoencoder)
    weights = {"autoencoder_path": autoencoder / "model_autoencoder.pt"}

    def train_diffusion(folder: Path, **more: Any) -> Command:
        settings = {**TINY, **UNET, **weights, "epochs": 6, "val_interval": 2, "output_dir": folder, **more}
        return server.start("train_diffusion", "smoke", **settings)

    diffusion, seconds_2 = this.undisturbed(train_diffusion)
    sampling = {"image_size": 32, "precision": "float32", **UNET, "model_path": diffusion / "model.pt"}

    def generate(folder: Path, **more: Any) -> Command:
        return server.start("inference", "smoke", **sampling, **{"num_samples": 20, "output_dir": folder, **more})

    def evaluate(folder: Path, **more: Any) -> Command:
        settings = {**sampling, **weights, "num_samples": 10, "output_dir": folder, **more}
        return server.start("evaluate", "smoke", **settings)

    stages = (
        ("first stage", train_autoencoder, autoencoder, seconds),
        ("second stage", train_diffusion, diffusion, seconds_2),
    )
    if only in ("", "training"):
        for name, start, expected, duration in stages:
            differs = same_training(expected)
            this.chain(f"{name}, killed at a random moment", start, differs, this.kill(duration), 12)
            this.chain(f"{name}, killed within a file", start, differs, this.kill_in_save(duration, 10_000_000), 5)
            this.chain(f"{name}, Ctrl-C or SIGTERM at a random moment", start, differs, this.interrupt(duration), 6)
            this.chain(f"{name}, disk full at a random byte", start, differs, this.fill_disk(8_000_000), 4)
            this.chain(f"{name}, killed, newest checkpoint damaged", start, differs, this.damage(duration), 4)
    if only in ("", "sampling"):
        for name, start, times in (("inference", generate, 8), ("evaluation", evaluate, 4)):
            expected, duration = this.undisturbed(start)
            differs = same_files(expected)
            this.chain(f"{name}, killed at a random moment", start, differs, this.kill(duration), times)
            this.chain(f"{name}, disk full at a random byte", start, differs, this.fill_disk(300_000), times // 4)
    if only in ("", "growth"):
        for name, start, _, _ in stages:
            workers = {"num_workers": 1} if start is train_autoencoder else {}
            this.long_run(name, lambda path, s=start, w=workers, **more: s(path, **w, **more), this.times(200))
        many = {"sample_batch_size": 16}
        this.many_samples(
            "inference", lambda path, **more: generate(path, **many, **more), [10, 500, this.times(10_000)]
        )
        few = {"diversity_size": 50, "classifier_epochs": 1, **many}
        this.many_samples(
            "evaluation", lambda path, **more: evaluate(path, **few, **more), [10, 500, this.times(10_000)]
        )
    server.close()
    return this


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=BUNDLE / "runs" / "soak.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the times that everything is tried")
    parser.add_argument("--only", choices=("training", "sampling", "growth"), default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        done = soak(Path(temporary), asked.seed, asked.share, asked.only)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps({"faults": done.rows, "growth": done.growth}, indent=1) + "\n")
    print(f"saved to {asked.output}")
    sys.exit(any(row["lost"] for row in done.rows))
