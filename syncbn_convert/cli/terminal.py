"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from syncbn_convert.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import ProgressColumn

PIPED_WIDTH = 80
"""Columns of a table that does not go to a terminal."""

HELP_WIDTH = 100
"""Most columns of a help text."""

logger = logging.getLogger("syncbn_convert")


def printable(text: str) -> str:
    """Return `text` as one line without control characters, which are escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def print_error(message: str) -> None:
    """Print `error: message` to stderr as one line, at once: other processes may write there."""
    line = " ".join(part.strip() for part in message.splitlines())
    sys.stderr.write(f"error: {printable(line)}\n")


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
        _discard_standard_output()
    except OSError as error:
        _discard_standard_output()
        raise UsageError(
            f"standard output cannot be written: {error.strerror}; redirect it elsewhere"
        ) from error


def print_tables(*renderables: RenderableType) -> None:
    """Write tables and lines to stdout."""
    write(render(sys.stdout, *renderables))


def _discard_standard_output() -> None:
    """Keep the interpreter from failing again when it flushes stdout at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def configure_logging(*, verbose: bool) -> None:
    """Send the project's log messages to stderr: all if `verbose`, else from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)


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
