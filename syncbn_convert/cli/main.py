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

import typer

from syncbn_convert.cli import lazy_imports, terminal
from syncbn_convert.cli.app import DEFAULT_COMMAND, app
from syncbn_convert.cli.flags import STANDARD_OUTPUT
from syncbn_convert.errors import (
    NO_ROOM,
    ModelFileError,
    SyncBNError,
    no_room_for_temporary_files,
)

BUG_EXIT_CODE = 101
_GROUP_FLAGS = ("-h", "--help", "--version")


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
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                terminal.print_error(no_room_for_temporary_files(error))
                return ModelFileError.exit_code
            return _print_unexpected(error)


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """Return `argv` with the default command and with the value of a bare `--json` filled in.

    A first argument that is neither a command nor a flag of the program belongs to `convert`. A
    bare `--json` never takes the next argument, which could be the model.
    """
    arguments = list(argv)
    commands = typer.main.get_group(app).commands
    if not arguments or (arguments[0] not in commands and arguments[0] not in _GROUP_FLAGS):
        arguments.insert(0, DEFAULT_COMMAND)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [f"--json={STANDARD_OUTPUT}" if flag == "--json" else flag for flag in arguments[:end]]
    return flags + arguments[end:]


def _run(argv: Sequence[str]) -> int:
    code = typer.main.get_group(app).main(
        args=complete_arguments(argv), prog_name="syncbn-convert", standalone_mode=False
    )
    return code if isinstance(code, int) else 0


def _print_unexpected(error: Exception) -> int:
    """Print a usage error of the parser as one line, anything else as the bug that it is."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        path = "syncbn-convert" if context is None else context.command_path
        terminal.print_error(f"{format_message().rstrip('.')}; see {path} --help")
        return 2
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
