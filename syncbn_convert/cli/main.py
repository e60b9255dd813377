"""Entry point: from arguments to an exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import syncbn_convert
from syncbn_convert.cli import lazy_imports, terminal
from syncbn_convert.errors import (
    NO_ROOM,
    ModelFileError,
    SyncBNError,
    UsageError,
    no_room_for_temporary_files,
)

BUG_EXIT_CODE = 101
INTERRUPTED_EXIT_CODE = 130
_COLLECTOR_THRESHOLDS = (100_000, 50, 100)
"""A graph is millions of objects that stay; Python's own cost a tenth of a conversion."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: The process was told to end (SIGTERM), with exit code 143.
    """
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    atexit.register(gc.freeze)  # what is left then ends with the process, without being searched
    lazy_imports.install()
    with _exit_on_sigterm():
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        except SyncBNError as error:
            if not error.silent:
                terminal.print_error(str(error))
            return error.exit_code
        except KeyboardInterrupt:
            return INTERRUPTED_EXIT_CODE
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                terminal.print_error(no_room_for_temporary_files(error))
                return ModelFileError.exit_code
            return _print_bug(error)


def _run(argv: Sequence[str]) -> int:
    """Run one command; what help prints goes out as results do, whoever reads it."""
    if list(argv) in (["--version"], ["version"]):
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


def _print_bug(error: Exception) -> int:
    traceback.print_exception(error)
    terminal.print_error(
        "this is a bug in syncbn-convert; please report it together with the traceback above"
    )
    return BUG_EXIT_CODE


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that temporary files and child processes are cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise_system_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise_system_exit(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)
    raise SystemExit(128 + signum)
