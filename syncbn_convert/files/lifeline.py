"""Processes that end when the one that started them has ended, by whatever signal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator

with contextlib.suppress(ImportError):
    import fcntl


@contextlib.contextmanager
def held() -> Iterator[int]:
    """Provide the end of a lifeline for a child to hold on to, until the block ends.

    Yields:
        A descriptor that the child has to inherit and to give to `hold_on`.
    """
    hold, own = os.pipe()
    try:
        yield hold
    finally:
        os.close(hold)
        os.close(own)


def hold_on(descriptor: int) -> None:
    """Let the system end this process as soon as nobody has the other end of a pipe.

    No code of this process has to run for that, which may be busy elsewhere, or stopped.

    Args:
        descriptor: The end that is read; nothing is ever written to the other.
    """
    if not hasattr(os, "O_ASYNC"):
        return
    ending = signal.SIGKILL
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, ending)
    else:
        signal.signal(signal.SIGIO, signal.SIG_DFL)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(0):  # it was let go of before
        os.kill(os.getpid(), ending)
