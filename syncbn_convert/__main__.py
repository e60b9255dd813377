"""`python -m syncbn_convert` is `syncbn-convert`, and both begin here: signals first."""

import contextlib
import os
import signal
import sys
from types import FrameType


def run() -> int:
    """Run the command line; signals end it while it still loads as they do later."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from syncbn_convert.cli.main import main

    return main()


def _end(number: int, _frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"error: ended by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
