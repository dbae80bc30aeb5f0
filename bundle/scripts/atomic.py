"""Files that appear whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial-"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under another name and then give it its own, in place of an earlier one.

    Args:
        path: the file to write; its folder is made.

    Yields:
        The path to write to, in the same folder and with the same endings. Once the block has ended, the content is
        flushed to the disk and the file renamed; if it raises, the earlier file stays as it was.

    Example:
        >>> with replacing("table.csv") as partial:  # doctest: +SKIP
        ...     partial.write_text("r,a,b")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)  # the name, too, has to outlast a power cut
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def clear_partial(folder: str | os.PathLike) -> None:
    """Remove what a killed process left half-written in a folder."""
    for leftover in Path(folder).glob(f"{PARTIAL}*"):
        leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
