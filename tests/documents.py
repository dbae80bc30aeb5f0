"""The documents as data: their code blocks, commands, programs, tables and links."""

from __future__ import annotations

import re
import shlex

from conftest import ROOT

PAGES = sorted((ROOT / "bundle" / "docs").glob("*.md"))
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*map(ROOT.joinpath, ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES)
}


def find_blocks(text: str, *languages: str) -> list[str]:
    """Find the code blocks of a text, those of some languages if any are given; "" is a block that names none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for language, block in blocks if not languages or language in languages]


def read_blocks(name: str, *languages: str) -> list[str]:
    """Read the code blocks of a document, as ``find_blocks`` does."""
    return find_blocks(DOCUMENTS[name], *languages)


def read_commands(name: str, *starts: str) -> list[str]:
    """Read the lines of a document's shell blocks that begin with one of ``starts``; without any, all of them."""
    lines = "".join(read_blocks(name, "bash", "")).replace("\\\n", "").splitlines()
    return [line for line in map(str.strip, lines) if line.startswith(starts or "")]


def read_targets(name: str) -> set[str]:
    """Read the targets of ``make`` that a document names, in its text or in a shell block."""
    inline = re.findall(r"`(make [^`]+)`", DOCUMENTS[name])
    words = [word for line in [*inline, *read_commands(name, "make ")] for word in shlex.split(line, comments=True)]
    return {word for word in words if word != "make" and "=" not in word}


def read_links(name: str) -> list[str]:
    """Read the files that a document links to or shows, as paths from its folder."""
    return [link.partition("#")[0] for link in re.findall(r"\]\((?!http|#)([^)]+)\)", DOCUMENTS[name])]


def read_table(name: str, first: str) -> list[list[str]]:
    """Read the rows of the table of a document whose first column is headed ``first``."""
    (rows,) = re.findall(rf"^\| {first} \|.*\n\|[-| ]+\n((?:\|.*\n?)+)", DOCUMENTS[name], flags=re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def read_overlays() -> set[tuple[str, str]]:
    """Read the (config, overlay) pairs of the settings' table, but for smoke.json and multi_gpu_*.json."""
    return {
        (config, re.sub(r"`(\w+)\.json`", r"\1", overlay))
        for overlay, configs, *_ in read_table("bundle/docs/settings.md", "overlay")
        for config in re.findall(r"`(\w+)`", configs)
        if "*" not in overlay
    }
