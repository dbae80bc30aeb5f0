"""Files that appear whole or not at all, whenever the process that writes them is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from .checks import PlainError

PARTIAL = ".partial-"
# Errors of a disk, or of a user's share of it, that is full.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under another name and then give it its own, in place of an earlier one.

    Args:
        path: the file to write; its folder is made.

    Yields:
        The path to write to, in the same folder and with the same endings. Once the block has ended, the content is
        flushed to the disk and the file renamed; if it raises, the earlier file stays as it was.

    Raises:
        PlainError: when the disk is full.

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
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if is_full(error):
            raise PlainError(explain_full(path, error)) from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Tell whether an error is that of a disk that is full."""
    return isinstance(error, OSError) and error.errno in FULL


def explain_full(path: str | os.PathLike, error: BaseException) -> str:
    """Say in one line that a file could not be written."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
    return f"{path} can't be written: {reason}. Files that were written before are whole."


def clear_partial(folder: str | os.PathLike) -> None:
    """Remove what a killed process left half-written in a folder."""
    for leftover in Path(folder).glob(f"{PARTIAL}*"):
        leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
