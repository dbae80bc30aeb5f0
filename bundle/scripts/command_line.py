"""How ``python -m monai.bundle`` ends: an error in one line, a signal in good order.

In a program that runs a workflow itself, errors and signals stay as they are.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from monai.bundle import ConfigWorkflow, ReferenceResolver
from monai.bundle.config_item import ConfigComponent
from torch.utils.data._utils import signal_handling
from tqdm import tqdm

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
        _watch_workers()
    _on_signal(_end)


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
        if (lost := _explain_lost_worker(cause)) is not None:
            return (
                f"{lost}. Often the system ended it for lack of memory: a smaller num_workers or batch helps. Then run "
                "the same command again."
            )
    frames = [frame for cause in causes for frame in _frames(cause)]
    starting = any(
        frame.f_code.co_name == "initialize" and isinstance(frame.f_locals.get("self"), ConfigWorkflow)
        for frame in frames
    )
    resolving = [
        frame.f_locals
        for frame in frames
        if frame.f_code.co_name == "_resolve_one_item" and isinstance(frame.f_locals.get("self"), ReferenceResolver)
    ]
    wrapped = [cause for cause in causes if not str(cause).startswith(("Failed to instantiate", "Failed to evaluate"))]
    # What fails at the start is what the config says; later on, that a component can't be made of it.
    making = str(error).startswith("Failed to instantiate") and isinstance(
        causes[-1], (ValueError, TypeError, AssertionError)
    )
    # a step of a list of steps (run#0) is no key of a user's
    if wrapped and resolving and (starting or making) and not re.fullmatch(r"\w+#\d+", _name(resolving[-1])):
        return _blame(resolving[-1], wrapped[0])
    # MONAI's own words, for ids and files
    if isinstance(error, (ValueError, KeyError, FileNotFoundError)) and _raised_by(error, "monai.bundle"):
        return str(error.args[0] if error.args else error)
    return None


def _explain_lost_worker(error: BaseException) -> str | None:
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # torch's words
        return str(error).splitlines()[0].strip(" .")
    # The socket that a worker's tensors come by can close before torch sees that the worker is gone.
    taking = any(frame.f_code.co_name == "_try_get_data" for frame in _frames(error))
    if taking and isinstance(error, (ConnectionError, EOFError)):
        return f"DataLoader worker is gone: {str(error) or type(error).__name__}"
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _raised_by(error: BaseException, package: str) -> bool:
    *_, last = _frames(error)
    return last.f_globals.get("__name__", "").startswith(package)


def _name(resolving: dict[str, Any]) -> str:
    return str(resolving["id"]).replace("::", "#")


def _blame(resolving: dict[str, Any], error: BaseException) -> str:
    """Name what of the config an error is about: an expression, or those arguments of a component that it mentions."""
    key, item, said = _name(resolving), resolving.get("item"), str(error).splitlines()[0].strip(" \"'")
    config = item.get_config() if item is not None else None
    if isinstance(item, ConfigComponent) and isinstance(config, dict):
        given = {name: value for name, value in config.items() if isinstance(value, (bool, int, float, str, list))}
        mentioned = {name: value for name, value in given.items() if name in said and not name.startswith("_")}
        values = mentioned or {name: value for name, value in given.items() if not name.startswith("_")}
        if not values or "Cannot locate" in said:
            return f"{key}: {said}"
        return ", ".join(f"{key}#{name}={value!r}" for name, value in values.items()) + f": {said}"
    if isinstance(config, str):
        # as it was written, not as MONAI evaluates it
        written = re.sub(r"__local_refs\['(.+?)'\]", lambda match: "@" + match[1].replace("::", "#"), config)
        return f"{key}={written!r}: {said}"
    return f"{key}: {said}"


def _is_no_plain_end(record: logging.LogRecord) -> bool:
    """Keep ignite and MONAI from logging what the command line ends with anyway."""
    error = sys.exc_info()[1]
    return not isinstance(error, SystemExit) and (error is None or explain(error) is None)


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    # the signal of a lost worker may come until the process ends: no second error from here on
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message = explain(error)
    if message is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # which leaves the line that it is on
        print(f"error: {message}", file=sys.stderr)


def _watch_workers() -> None:
    """Let torch raise the loss of a data worker, except while ``_show`` shows another error.

    When a worker dies, its socket closes first and its signal comes later. So the error of the socket may already be on
    its way to ``_show``. Python handles signals when a function starts: torch would raise a second error before the
    first line of ``_show`` runs.
    """
    # as torch does when data workers start, and then not again
    getattr(signal_handling, "_set_SIGCHLD_handler", lambda: None)()
    raise_loss = signal.getsignal(signal.SIGCHLD)

    def handler(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None and at.f_code is not _show.__code__:
            at = at.f_back
        if at is None and callable(raise_loss):
            raise_loss(number, frame)

    signal.signal(signal.SIGCHLD, handler)


def _show_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if not is_full(arguments.exc_value):  # TensorBoard's thread, whose error the main one raises again
        threading.__excepthook__(arguments)


def _on_signal(handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle the signals that end a command; those of a program that runs a workflow itself are its own."""
    if on_command_line() and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None = None) -> None:
    if os.getpid() != COMMAND:
        return
    print(f"stopped by {signal.Signals(number).name}; to go on, run the same command again", file=sys.stderr)
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
        _on_signal(self._note)

    def stop_waiting(self) -> None:
        """From now on, a signal ends the process at once."""
        _on_signal(_end)

    def _note(self, number: int, frame: FrameType | None = None) -> None:
        if self.signal is not None:
            _end(number)
        self.signal = number
