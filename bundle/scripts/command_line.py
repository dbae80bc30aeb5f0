"""How ``python -m monai.bundle`` ends: an error in one line, a signal in good order.

In a program that runs a workflow itself, errors and signals stay as they are.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import NoReturn

from .atomic import explain_full, is_full
from .checks import PlainError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A data worker is a fork of the command: a terminal sends it the signal too, and it is the command that ends it.
COMMAND = os.getpid()


def on_command_line() -> bool:
    """Tell whether the process is ``python -m monai.bundle``, and not a program that runs a workflow itself."""
    program = getattr(sys.modules.get("__main__"), "__spec__", None)
    return program is not None and program.name == "monai.bundle.__main__"


def end_plainly(verbose: bool = False) -> None:
    """From now on, end the command line by an error or a signal with one line.

    Args:
        verbose: whether to show the traceback of an error as well.
    """
    if not on_command_line():
        return
    if not verbose:
        sys.excepthook = _show
        threading.excepthook = _show_of_thread
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_no_plain_end)
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _end)


def explain(error: BaseException) -> str | None:
    """Put an error that a user can mend into words; ``None`` for one that is no user's.

    MONAI's config parser wraps whatever a component raises in errors of its own; what is wrong stands somewhere above
    two tracebacks.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, PlainError):
            return str(cause)
    for cause in causes:
        if is_full(cause):  # of a file that grows, such as TensorBoard's
            return explain_full(getattr(cause, "filename", None) or "a file of this run", cause)
        # torch's words, with what to make of them
        if isinstance(cause, RuntimeError) and str(cause).startswith("DataLoader worker"):
            return (
                f"{str(cause).splitlines()[0].strip(' .')}. Often the system ended it for lack of memory: a smaller "
                "num_workers or batch helps. The same command carries on."
            )
    # MONAI's own words: for a component that can't be made of what the config says, and for ids and files
    first, last = str(error), causes[-1]
    if first.startswith("Failed to instantiate component") and isinstance(
        last, (ValueError, TypeError, AssertionError)
    ):
        component = first.split("'")[1].rpartition(".")[2]
        return f"{component} can't be made with these settings: {str(last).splitlines()[0]}"
    if isinstance(error, (ValueError, KeyError, FileNotFoundError)) and _raised_by(error, "monai.bundle"):
        return str(error.args[0] if error.args else error)
    return None


def _raised_by(error: BaseException, package: str) -> bool:
    traceback, name = error.__traceback__, ""
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return name.startswith(package)


def _is_no_plain_end(record: logging.LogRecord) -> bool:
    """Keep ignite and MONAI from logging what the command line ends with anyway."""
    error = sys.exc_info()[1]
    return not isinstance(error, SystemExit) and (error is None or explain(error) is None)


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    message = explain(error)
    if message is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"error: {message}", file=sys.stderr)


def _show_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if not is_full(arguments.exc_value):  # TensorBoard's thread, whose error the main one raises again
        threading.__excepthook__(arguments)


def _end(number: int, frame: FrameType | None = None) -> None:
    if os.getpid() != COMMAND:
        return
    print(f"stopped by {signal.Signals(number).name}; the same command carries on", file=sys.stderr)
    sys.exit(128 + number)


class Interruption:
    """Notes a signal instead of ending the process; a second one ends it at once.

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

    def stop_waiting(self) -> None:
        """From now on, a signal ends the process at once."""
        if on_command_line() and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, _end)

    def end_process(self) -> NoReturn:
        """End the process as the signal would have."""
        assert self.signal is not None
        sys.exit(128 + self.signal)

    def _note(self, number: int, frame: FrameType | None = None) -> None:
        if self.signal is not None:
            _end(number)
        self.signal = number
