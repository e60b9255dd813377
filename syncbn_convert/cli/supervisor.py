"""A command in a process of its own, beside one that waits for it and is always free to act.

A signal reaches Python code only between two of its instructions. A command spends its time in
operators, checkers and parsers, which may take minutes, and an exception inside an operator would
crash. So the process that was started waits; it passes signals on, ends the one that works if that
does not end by itself, clears up behind it, and has the exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from syncbn_convert.files import lifeline, scratch
from syncbn_convert.files.locked_folder import JOURNAL, Busy, LockedFolder

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that tell a command to end."""

_GRACE = 1.0
"""Seconds that a command has to end by itself."""
_STUCK_EXIT_CODE = 1
_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"


def is_possible() -> bool:
    """Whether the system has what it takes."""
    return hasattr(os, "fork")


def heeded() -> list[signal.Signals]:
    """Return the signals that end a command: where one is ignored, as by nohup, it stays so."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def run(work: Callable[[], int]) -> int:
    """Do `work` in a process of its own; return its exit code in both processes."""
    try:
        folder = scratch.make()
    except OSError:
        return work()  # it will say that there is no room
    hold, own = os.pipe()
    signals = heeded()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child:
        os.close(hold)
        return _Waiting(child, folder).wait(signals)
    os.close(own)
    lifeline.hold_on(hold)
    scratch.enter(folder.path)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    return work()


class _Waiting:
    """The process that waits for the one that works."""

    def __init__(self, child: int, folder: LockedFolder) -> None:
        self._child = child
        self._folder = folder
        self._told: signal.Signals | None = None

    def wait(self, signals: list[signal.Signals]) -> int:
        """Wait for the end; return the exit code."""
        signal.signal(signal.SIGALRM, self._end)
        for number in signals:
            signal.signal(number, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        _, status = os.waitpid(self._child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        code = os.waitstatus_to_exitcode(status)
        notes = scratch.Notes(self._folder.path)
        lines = _lines(code, self._told, notes)
        if code < 0:
            _clear_up(notes)
        self._folder.remove()
        for line in lines:
            _print(line)
        if self._told is not None:
            return 128 + self._told
        if code == -signal.SIGALRM:
            return _STUCK_EXIT_CODE
        if code < 0:
            _end_alike(-code)
        return code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._told is None:
            self._told = signal.Signals(number)
            signal.setitimer(signal.ITIMER_REAL, _GRACE)
        self._kill(number)

    def _end(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._kill(signal.SIGKILL)

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)


def _lines(code: int, told: signal.Signals | None, notes: scratch.Notes) -> list[str]:
    """Return what a user is told of the end; of one that the command itself brought, nothing."""
    if told is not None:
        words = interrupted(told, notes.words)
        return [words] if words else []
    if code == -signal.SIGALRM:
        return [_with_names(notes.stuck)]
    if code < 0:
        name = signal.Signals(-code).name
        return [f"the command was ended by {name}, which nobody here sent; look for want of memory"]
    return []


def _with_names(words: str) -> str:
    if scratch.LATE not in words:
        return words
    from syncbn_convert.runtime.arrivals import Arrivals

    return words.replace(scratch.LATE, Arrivals().late())


def interrupted(number: int, words: str | None) -> str:
    """Return what is said of a command that a signal ended, None for the usual."""
    said = scratch.USUAL if words is None else words
    return said.replace(scratch.SIGNAL, signal.Signals(number).name)


def _clear_up(notes: scratch.Notes) -> None:
    """Clear up what a process that was killed left elsewhere."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
    for path in filter(os.path.exists, notes.claims):
        with contextlib.suppress(Busy, OSError):
            if (path / JOURNAL).exists():
                from syncbn_convert.files import staging  # seconds, which a launcher may not give

                staging.clear_up(path)
            else:
                LockedFolder(path).remove()


def _print(line: str) -> None:
    from syncbn_convert.cli import terminal

    terminal.print_error(line)


def _end_alike(number: int) -> None:
    """End by the signal that ended the one that worked, as a launcher expects of its processes."""
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
