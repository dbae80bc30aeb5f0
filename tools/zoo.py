"""What a pull request to MONAI's model zoo adds, and the checks that the zoo makes of it.

``make zoo`` writes it into ``dist/zoo``, laid out as the zoo's repository: the bundle, its JSON and its Python as the
zoo's formatters leave them, and a unit test. Then it checks that by the zoo's rules and runs the zoo's commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import black
from monai.bundle import ConfigParser, verify_metadata

from .archive import copy_bundle
from .card import NAME

ROOT = Path(__file__).parents[1]

HEADER = """\
# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""

# as the zoo's runtests.sh calls black
BLACK = black.Mode(
    line_length=120,
    magic_trailing_comma=False,
    target_versions={black.TargetVersion.PY37, black.TargetVersion.PY38, black.TargetVersion.PY39},
)

LARGEST = 25_000_000  # bytes of a file; a larger one is downloaded, by large_files.yml
FILES = (
    *("LICENSE", "configs/metadata.json", "configs/inference.json", "configs/logging.conf"),
    *("docs/README.md", "docs/data_license.txt", "models/model.pt"),
)
# what a config has to have, by the beginning of its name
KEYS = {
    "inference": ("bundle_root", "device", "network_def", "inferer", "output_dir"),
    "evaluate": ("bundle_root", "device", "network_def", "inferer", "output_dir"),
    "train": ("bundle_root", "device", "dataset_dir", "output_dir"),
}
# what a training has to have within these parts; the last of each, because it uses them
PARTS = {
    "train": ("trainer", "trainer#max_epochs", "dataset", "dataset#data", "handlers", "inferer", "preprocessing"),
    "validate": ("evaluator", "dataset", "dataset#data", "handlers", "inferer", "preprocessing", "key_metric"),
}

VERIFY = ("--net_id", "network_def", "--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")


def format_python(text: str) -> str:
    """Lay out a module as the zoo does, with the zoo's licence header."""
    return black.format_str(HEADER + text, mode=BLACK) if text.strip() else HEADER.rstrip() + "\n"


def format_json(text: str) -> str:
    """Lay out a config as the zoo does: an element a line."""
    return json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n"


def assemble(bundle_root: str | Path, folder: str | Path) -> Path:
    """Write what a pull request to the zoo adds.

    Args:
        bundle_root: folder of the bundle.
        folder: stands for the zoo's repository; what was there is replaced.

    Returns:
        Path of the bundle in it.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    copy = folder / "models" / NAME
    copy_bundle(bundle_root, copy)
    for path in copy.rglob("*.json"):
        path.write_text(format_json(path.read_text()))
    for path in copy.rglob("*.py"):
        path.write_text(format_python(path.read_text()))
    test = folder / "ci" / "unit_tests" / f"test_{NAME}.py"
    test.parent.mkdir(parents=True)
    test.write_text(format_python((ROOT / "tools" / "zoo_unit_test.py").read_text()))
    return copy


def _check_config(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    parser = ConfigParser(dict(config))
    wanted = [key for kind, keys in KEYS.items() if name.startswith(kind) for key in keys]
    if name.startswith("train"):
        wanted += [f"{part}#{key}" for part, keys in PARTS.items() if part in config for key in keys]
    yield from (f"configs/{name}.json: lacks {key}" for key in wanted if key not in parser)
    for handler in parser.get("train#handlers", []):
        if handler["_target_"] == "ValidationHandler" and handler["interval"] != "@val_interval":
            yield f"configs/{name}.json: the interval of ValidationHandler is not @val_interval"


def check(bundle: Path) -> list[str]:
    """Check a bundle by the zoo's rules about files, names and keys.

    Args:
        bundle: its folder, in ``models`` of what ``assemble`` wrote.

    Returns:
        What is wrong, a line each.
    """
    wrong = [f"{name}: missing" for name in FILES if not (bundle / name).is_file()]
    if not re.fullmatch(r"\w+", bundle.name):
        wrong.append(f"{bundle.name}: a bundle's name has letters, digits and underscores")
    test = bundle.parents[1] / "ci" / "unit_tests" / f"test_{bundle.name}.py"
    if not test.is_file():
        wrong.append(f"{test.name}: missing in ci/unit_tests")
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        name = path.relative_to(bundle).as_posix()
        if path.stat().st_size > LARGEST:
            wrong.append(f"{name}: larger than {LARGEST // 10**6} MB")
        if path.suffix == ".py" and not path.read_text().startswith(HEADER.rstrip()):
            wrong.append(f"{name}: without the licence header")
        if path.suffix == ".json" and path.read_text() != format_json(path.read_text()):
            wrong.append(f"{name}: not laid out as the zoo's")
    for path in sorted((bundle / "configs").glob("*.json")):
        config = json.loads(path.read_text())
        if "device" in config:  # an overlay leaves to the config below it what it does not change
            wrong += _check_config(path.stem, config)
    if (bundle / "configs" / "metadata.json").is_file():
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        if not metadata.get("name"):
            wrong.append("configs/metadata.json: lacks a name to show")
        if metadata.get("version") not in metadata.get("changelog", {}):
            wrong.append("configs/metadata.json: the version is not in the changelog")
    return wrong


def run_checks(bundle: Path) -> None:
    """Run what the zoo runs: its verification of metadata, inputs and outputs, TorchScript, and the unit test.

    Args:
        bundle: as for ``check``.

    Raises:
        ValueError: when the metadata don't keep to the schema.
        subprocess.CalledProcessError: when a command fails.
    """
    metadata, schema = bundle / "configs" / "metadata.json", ROOT / "tests" / "metadata_schema.json"
    verify_metadata(meta_file=str(metadata), filepath=str(schema))
    monai = (sys.executable, "-m", "monai.bundle")
    # without this repository's modules on the path: those of the copy are tried
    options: dict[str, Any] = {"check": True}
    options["env"] = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*monai, "verify_net_in_out", *VERIFY], cwd=bundle, **options)
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model.ts")
        export = ("--filepath", model, "--ckpt_file", "models/model.pt")
        subprocess.run([*monai, "ckpt_export", *VERIFY, *export], cwd=bundle, **options)
        subprocess.run([sys.executable, "-c", "import sys, torch; torch.jit.load(sys.argv[1])", model], **options)
    subprocess.run([sys.executable, f"ci/unit_tests/test_{bundle.name}.py"], cwd=bundle.parents[1], **options)


if __name__ == "__main__":
    assembled = assemble(ROOT / "bundle", sys.argv[1])
    if mistakes := check(assembled):
        sys.exit("\n".join(mistakes))
    run_checks(assembled)
    print(f"the zoo's checks hold: {sys.argv[1]}")
