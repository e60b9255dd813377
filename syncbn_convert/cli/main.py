"""Entry point: from arguments to an exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import syncbn_convert
from syncbn_convert.cli import lazy_imports, supervisor, terminal
from syncbn_convert.errors import (
    NO_ROOM,
    ModelFileError,
    SyncBNError,
    UsageError,
    no_room_for_temporary_files,
    printable_lines,
)
from syncbn_convert.files import blame, scratch

BUG_EXIT_CODE = 101
LEFT_BEHIND = "replica"
"""What the names of threads begin with that may be in an operator which never ends."""
_VERSION = (["--version"], ["version"])
_COLLECTOR_THRESHOLDS = (100_000, 50, 100)
"""A graph is millions of objects that stay; Python's own cost a tenth of a conversion."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: that of the command, or 128 and the number of the signal that ended it.
    """
    terminal.prepare()
    if argv is not None:
        return _guarded(argv)
    arguments = sys.argv[1:]
    if not supervisor.is_possible() or arguments in _VERSION or "--help" in arguments:
        return _guarded(arguments)
    return supervisor.run(lambda: _to_the_end(arguments))


def _to_the_end(arguments: Sequence[str]) -> int:
    """Run one command in a process of its own; return, unless a thread keeps the process alive."""
    code = _guarded(arguments)
    if any(thread.name.startswith(LEFT_BEHIND) for thread in threading.enumerate()):
        terminal.flush()
        os._exit(code)
    return code


def _guarded(argv: Sequence[str]) -> int:
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    atexit.register(gc.freeze)  # what is left then ends with the process, without being searched
    lazy_imports.install()
    scratch.say_if_interrupted(None)
    blame.forget()
    try:
        with _told_to_end():
            return _run(argv)
    except SyncBNError as error:
        if not error.silent:
            terminal.print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT)
    except _ToldToEnd as told:
        return _interrupted(told.number)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            terminal.print_error(no_room_for_temporary_files(error))
            return ModelFileError.exit_code
        return _print_bug(error)


def _run(argv: Sequence[str]) -> int:
    """Run one command; what help prints goes out as results do, whoever reads it."""
    if list(argv) in _VERSION:
        terminal.write(f"syncbn-convert {syncbn_convert.__version__}\n")
        return 0
    from cyclopts import CycloptsError

    from syncbn_convert.cli import usage
    from syncbn_convert.cli.app import app

    arguments = usage.complete_arguments(argv, commands=set(app))
    try:
        with terminal.captured() as console:
            code = app(arguments, console=console, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        terminal.print_error(usage.message(error))
        return UsageError.exit_code
    return code if isinstance(code, int) else 0


def _fault_of_input() -> str:
    """Return what onnx's strict inference says against a model that was read; empty if nothing.

    Models are read that it refuses, as runtimes run many of them, and most can be rewritten.
    """
    if not blame.suspects():
        return ""
    from syncbn_convert.files import model_file

    return next((fault for path in blame.suspects() if (fault := model_file.fault_of(path))), "")


def _print_bug(error: Exception) -> int:
    if fault := _fault_of_input():
        terminal.logger.debug("what the model led to", exc_info=error)
        terminal.print_error(fault)
        return ModelFileError.exit_code
    terminal.tell(printable_lines("".join(traceback.format_exception(error))))
    terminal.print_error(
        "this is a bug in syncbn-convert; please report it together with the traceback above"
    )
    return BUG_EXIT_CODE


class _ToldToEnd(BaseException):
    """A signal told the process to end.

    Attributes:
        number: Which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Let signals raise, so that temporary files and child processes are cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _raise) for number in supervisor.heeded()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    for other in supervisor.heeded():
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise _ToldToEnd(number)


def _interrupted(number: int) -> int:
    """Say so, unless the process that waits for this one does."""
    if not scratch.is_own_process():
        terminal.print_error(supervisor.interrupted(number, scratch.said_if_interrupted()))
    return 128 + number
