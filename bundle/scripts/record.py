"""The settings of a run, kept beside what it writes, to tell whether another run is the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .config import TRACKING, find_parser

# What changes nothing that is trained or generated.
UNRECORDED = (
    *("bundle_root", "output_dir", "ckpt_dir", "device", "rank", "num_workers"),
    *("verbose", "resume", "keep_checkpoints"),
    *("imports", "initialize", "run", "finalize", "_meta_", "_desc_", "any_config"),
    *TRACKING,
)
# Files that count by what is in them.
FILES = {"autoencoder_file": "autoencoder_path", "model_file": "model_path", "requests": "requests"}


class RunRecord:
    """The settings of the run that is going on.

    Args:
        ignore: keys at the top that don't matter for this kind of run.

    Attributes:
        values: each leaf of the config that matters, by its id (``loss#kl_weight``), as text; instead of the path of a
            file that is read, the digest of its content; beside ``dataset_dir``, the digest of its items.
    """

    def __init__(self, ignore: Iterable[str] = ()) -> None:
        parser = find_parser()
        unrecorded = {*UNRECORDED, *ignore}
        self.values = dict(_flatten({key: value for key, value in parser.get().items() if key not in unrecorded}))
        if "dtype" in parser:  # what precision=auto stands for on this machine
            self.values["precision"] = str(parser.get_parsed_content("dtype")).removeprefix("torch.")
        if "epochs" in parser:  # may be an expression
            self.values["epochs"] = str(parser.get_parsed_content("epochs"))
        scans = parser.get_parsed_content("scans") if "scans" in parser else {}
        if any(scans.values()):  # which volumes a folder, pattern or datalist stands for
            self.values["dataset_dir"] += ", " + _digest(json.dumps(scans, sort_keys=True, default=str).encode())
        for file, key in FILES.items():
            given = next((name for name in (file, key) if name in parser), None)
            path = parser.get_parsed_content(given) if given else None
            if path and Path(path).is_file():  # else whoever loads it says so
                self.values[key] = _digest(Path(path).read_bytes())

    def state_dict(self) -> dict[str, str]:
        """Return the settings, for a checkpoint."""
        return self.values

    def load_state_dict(self, state_dict: Mapping[str, str]) -> None:
        """Keep the settings of this run, whatever a checkpoint says."""


def _digest(content: bytes) -> str:
    return "sha256 " + hashlib.sha256(content).hexdigest()[:16]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value.get("_target_") != "MLFlowHandler":
        for name, item in value.items():
            yield from _flatten(item, f"{key}#{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for i, item in enumerate(value):
            yield from _flatten(item, f"{key}#{i}")
    elif not isinstance(value, dict):
        # an object that a program has put in has no text of its own that would last
        plain = value is None or isinstance(value, (bool, int, float, str, list))
        yield key, repr(value) if plain else type(value).__name__


def find_differences(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """Say for each setting that differs what it was there and what it is here."""
    differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return {key: f"{key} ({there.get(key, 'none')} there, {here.get(key, 'none')} here)" for key in differing}


def describe(differences: Mapping[str, str]) -> str:
    """Put differences into one line, the first five by name."""
    most = 5
    shown = ", ".join(list(differences.values())[:most])
    return shown + (f" and {len(differences) - most} more" if len(differences) > most else "")
