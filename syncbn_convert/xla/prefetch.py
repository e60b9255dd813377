"""Work ahead, on a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

_AHEAD = 2
"""Items that are ready before they are asked for."""
Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield what `make` makes of items, some of them before they are asked for."""
    made: queue.Queue[Any] = queue.Queue(_AHEAD)
    done = threading.Event()

    def work() -> None:
        try:
            for item in items:
                _put(made, (make(item), None), done)
                if done.is_set():
                    return
            _put(made, (None, None), done)
        except BaseException as error:
            _put(made, (None, error), done)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            found, error = made.get()
            if error is not None:
                raise error
            if found is None:
                return
            yield found
    finally:
        done.set()
        thread.join()


def _put(made: queue.Queue[Any], item: Any, done: threading.Event) -> None:
    while not done.is_set():
        try:
            made.put(item, timeout=0.1)
            return
        except queue.Full:
            continue
