"""What a pull request to the model zoo adds. `make zoo` runs the zoo's commands on it as well."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BUNDLE

from tools.zoo import HEADER, assemble, check


@pytest.fixture(scope="module")
def assembled(tmp_path_factory) -> Path:
    return assemble(BUNDLE, tmp_path_factory.mktemp("zoo") / "zoo")


def test_rules_of_the_zoo(assembled):
    assert check(assembled) == []
    assert not [path for path in assembled.rglob("*") if path.suffix in (".pyc", ".ts")]


def test_same_content(assembled):
    """The zoo's formatters change no value of a config and no meaning of a module."""
    for path in (assembled / "configs").glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((BUNDLE / "configs" / path.name).read_text())
    for path in (assembled / "scripts").rglob("*.py"):
        original = BUNDLE / path.relative_to(assembled)
        assert ast.dump(ast.parse(path.read_text())) == ast.dump(ast.parse(original.read_text())), path
    lines = (assembled / "configs" / "train_diffusion.json").read_text().splitlines()
    assert lines[lines.index('    "spacing": [') + 1] == "        1.0,"  # an element a line


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change a JSON file of a bundle, which stays laid out as it is."""

    def apply(bundle: Path) -> None:
        path = bundle / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n")

    return apply


def strip_header(bundle: Path) -> None:
    path = bundle / "scripts" / "atomic.py"
    path.write_text(path.read_text().removeprefix(HEADER))


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda bundle: (bundle / "LICENSE").unlink(), "LICENSE: missing"),
        (lambda bundle: (bundle / "models" / "model.pt").unlink(), "models/model.pt: missing"),
        (lambda bundle: (bundle / "models" / "large.pt").write_bytes(b"\0" * 25_000_001), "models/large.pt: larger"),
        (lambda bundle: (bundle / "configs" / "data.json").write_text("{}"), "configs/data.json: not laid out"),
        (strip_header, "scripts/atomic.py: without the licence"),
        (lambda bundle: shutil.rmtree(bundle.parents[1] / "ci"), "test_spheres_latent_diffusion.py: missing"),
        (
            edit("configs/metadata.json", lambda content: content.update(version="9.9.9")),
            "configs/metadata.json: the v",
        ),
        (edit("configs/metadata.json", lambda content: content.pop("name")), "configs/metadata.json: lacks a name"),
        (edit("configs/inference.json", lambda content: content.pop("inferer")), "configs/inference.json: lacks inf"),
        (
            edit("configs/train_diffusion.json", lambda content: content["validate"].pop("key_metric")),
            "configs/train_diffusion.json: lacks validate#key_metric",
        ),
        (
            edit("configs/train_autoencoder.json", lambda content: content["train"]["handlers"][4].update(interval=1)),
            "configs/train_autoencoder.json: the interval",
        ),
    ],
)
def test_broken_rule(spoil, wrong, assembled, tmp_path):
    """Each rule is told when it is broken, and it alone."""
    shutil.copytree(assembled.parents[1], tmp_path / "zoo")
    bundle = tmp_path / "zoo" / "models" / assembled.name
    spoil(bundle)
    (message,) = check(bundle)
    assert message.startswith(wrong)
