"""A time limit for calls that hold the interpreter, where no Python code can end them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from syncbn_convert.files import scratch


@contextlib.contextmanager
def ended_after(seconds: float, words: str) -> Iterator[None]:
    """Let the system end this process, by SIGALRM, if the block takes longer.

    Args:
        seconds: How long it may take.
        words: What the command line tells its user then; `scratch.LATE` in it stands for the
            replicas that are late.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    scratch.say_if_stuck(words)
    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, previous)
