"""Options that are regular expressions, searched in names."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from syncbn_convert.errors import UsageError

Patterns: TypeAlias = Annotated[tuple[str, ...], Parameter(metavar="REGEX")]


_LONGEST = 1000
_SHOWN = 60
_SECONDS = 1.0
_REPEATS = re.compile(r"[*+?}]")
"""What repeats nothing does not take more than a moment."""


def check_patterns(patterns: Iterable[str]) -> None:
    """Refuse what is not a regular expression.

    Raises:
        UsageError: naming the first.
    """
    for pattern in patterns:
        if len(pattern) > _LONGEST:
            raise UsageError(
                f"'{pattern[:20]}...' has {len(pattern)} characters; give several regular "
                f"expressions of up to {_LONGEST}"
            )
        try:
            with _limited(pattern, ""):
                re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(
                f"'{pattern}' is not a regular expression: {error}; escape special characters"
            ) from error


def matches(patterns: Iterable[str], *names: str) -> bool:
    """Whether one of the regular expressions is found in one of `names`.

    Raises:
        UsageError: if that takes too long to tell.
    """
    return any(_is_found(pattern, name) for pattern in patterns for name in names)


def _is_found(pattern: str, name: str) -> bool:
    """Whether a regular expression is found in `name`.

    Raises:
        UsageError: if that takes too long to tell, as nested repetitions can.
    """
    with _limited(pattern, name):
        return re.search(pattern, name) is not None


@contextlib.contextmanager
def _limited(pattern: str, name: str) -> Iterator[None]:
    """Let a signal end a search that takes too long; the engine looks for signals on its way."""
    if not _REPEATS.search(pattern) or not _can_be_limited():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise UsageError(
            f"'{pattern}' takes too long to be searched in '{name[:_SHOWN]}'; leave repetitions of "
            "repetitions out"
        )

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, end)
    before, interval = signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:
            left = max(before - (time.monotonic() - start), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _can_be_limited() -> bool:
    main = threading.current_thread() is threading.main_thread()
    return main and hasattr(signal, "setitimer")
