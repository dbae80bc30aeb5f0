"""Ctrl-C and SIGTERM: what is under way is brought to a good end first, and the exit status tells."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from .checks import on_command_line

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_plainly() -> None:
    """Let a signal end ``python -m monai.bundle`` at once, with one line, no traceback, and the usual exit status."""
    if on_command_line() and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None = None) -> NoReturn:
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


class Interruption:
    """Notes a signal instead of ending the process; a second one ends it at once.

    In a program that runs a workflow itself, signals stay as they are.

    Attributes:
        signal: the number of the signal that came, if one did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def await_one(self) -> None:
        """From now on, note a signal."""
        if on_command_line() and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None = None) -> None:
        if self.signal is not None:
            _end(number)
        self.signal = number

    def ignore(self) -> None:
        """From now on, a signal ends the process at once."""
        end_plainly()

    def end_process(self) -> NoReturn:
        """End the process as the signal would have."""
        assert self.signal is not None
        sys.exit(128 + self.signal)
