"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from syncbn_convert.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import ProgressColumn

PIPED_WIDTH = 80
"""Columns of a table that does not go to a terminal."""

HELP_WIDTH = 100
"""Most columns of a help text."""

logger = logging.getLogger("syncbn_convert")


def prepare() -> None:
    """Make streams usable that were closed, and let them show what they have no characters for.

    In the place of a stream that was closed stands one that cannot be written, so that no file that
    is opened later gets its number; messages that nobody can read are dropped.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Print `error: message` to stderr as one line, at once: other processes may write there.

    Where stderr cannot be written the exit code has to tell.
    """
    line = " ".join(part.strip() for part in message.splitlines())
    tell(f"error: {printable(line)}\n")


def tell(text: str) -> None:
    """Write `text` to stderr, if that can be written."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


def flush() -> None:
    """Let everything that was written go out, as at the end of the process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def render(stream: TextIO, *renderables: RenderableType) -> str:
    """Return tables and lines as text for `stream`."""
    buffer = io.StringIO()
    target = console(buffer, terminal=stream.isatty())
    for renderable in renderables:
        target.print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def write(text: str) -> None:
    """Write `text` to stdout.

    A reader that has gone away is no error; what it does not read is dropped.

    Raises:
        UsageError: Standard output cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        raise UsageError(
            f"standard output cannot be written: {error.strerror}; redirect it elsewhere"
        ) from error


def print_tables(*renderables: RenderableType) -> None:
    """Write tables and lines to stdout."""
    write(render(sys.stdout, *renderables))


def _discard(stream: TextIO) -> None:
    """Keep the interpreter from failing again when it flushes a stream at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Handler(logging.Handler):
    """Writes messages to stderr as lines without control characters."""

    def emit(self, record: logging.LogRecord) -> None:
        tell("".join(f"{printable(line)}\n" for line in self._lines(record)))

    def _lines(self, record: logging.LogRecord) -> Iterator[str]:
        yield f"{record.name}: {record.getMessage()}"
        if record.exc_info:
            for part in traceback.format_exception(*record.exc_info):
                yield from part.rstrip("\n").split("\n")


_LIBRARIES = ("onnx_ir", "onnxscript")
"""Their warnings speak of their own code; errors are raised, and told by us."""


def configure_logging(*, verbose: bool) -> None:
    """Send log messages to stderr.

    The project's own from warnings up, or all if `verbose`, and then those of libraries, too.
    """
    handler = _Handler()
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers = [handler if verbose else logging.NullHandler()]
        library.propagate = False


@contextlib.contextmanager
def bar(title: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None, str], None]]:
    """Show a bar on stderr, which is a terminal.

    Yields:
        A function to call with what is done, what is to be done (if known), and a text.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        *columns,
        console=console(sys.stderr, terminal=True),
        transient=True,
    )
    with shown:
        task = shown.add_task(printable(title), total=None, state="")
        yield lambda done, total, state: shown.update(
            task, completed=done, total=total, state=state
        )


@contextlib.contextmanager
def captured() -> Iterator[Console]:
    """Provide a console for help and version, whose text is written to stdout at the end."""
    from rich.console import Console

    buffer = io.StringIO()
    width = PIPED_WIDTH
    if sys.stdout.isatty():
        width = min(Console().width, HELP_WIDTH)
    yield Console(file=buffer, width=width, markup=False, highlight=False, emoji=False)
    if text := buffer.getvalue():
        write("".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def console(file: TextIO, *, terminal: bool) -> Console:
    """Return a console that uses colour only on a terminal, and 80 columns elsewhere."""
    from rich.console import Console

    return Console(
        file=file,
        force_terminal=terminal,
        width=None if terminal else PIPED_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )
