"""Several replicas as threads of this process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from syncbn_convert.errors import ReplicaError, SyncBNError
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.runtime.session import Array, Feeds, LoadedForm, ReplicaSession
from syncbn_convert.runtime.threads import ThreadGroup

Result = TypeVar("Result")

_PATIENCE = 1.0
"""Seconds that threads have to end where one has failed."""
_GRACE = 0.5
"""Seconds that one may end later than a collective would wait for it, so that this tells first."""


def run_replicas(
    model: ModelLike,
    feeds: Sequence[Feeds],
    *,
    engine: Literal["threads"] = "threads",
    timeout: float = DEFAULT_TIMEOUT,
) -> list[dict[str, Array]]:
    """Run one step of a training form on one replica for each feed.

    Args:
        model: The training form.
        feeds: Each replica's piece of the global batch, by input name; moving statistics that are
            fed count in place of those of the file.
        engine: Threads of this process; for other engines see `ReplicaSession`.
        timeout: Seconds that a replica waits in one collective.

    Returns:
        All outputs of each replica by name.

    Raises:
        ReplicaError: if a replica fails, with its message.
    """
    if engine != "threads":
        raise ValueError(f"engine '{engine}': one process runs replicas as 'threads' only")
    form = LoadedForm(model)

    def replica(communicator: Communicator) -> dict[str, Array]:
        session = ReplicaSession(form, communicator)
        return session.step(feeds[communicator.rank]).outputs

    return on_threads(len(feeds), replica, timeout=timeout)


def on_threads(
    size: int,
    replica: Callable[[Communicator], Result],
    *,
    timeout: float = DEFAULT_TIMEOUT,
) -> list[Result]:
    """Call `replica` once in each of `size` threads, with its communicator.

    An exception in one thread ends all of them, and is raised here as it is; so does one that comes
    to this thread, as Ctrl-C does. A thread that does not end soon after that is left behind.

    Returns:
        What each call returned, in the order of ranks.

    Raises:
        ReplicaError: if a replica failed in a collective, or ended much later than the first.
    """
    group = ThreadGroup(size, timeout)
    results: dict[int, Result] = {}
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def target(communicator: Communicator) -> None:
        try:
            results[communicator.rank] = replica(communicator)
        except BaseException as error:
            ended.put(error)
            group.fail(_message(error, communicator.rank))
        else:
            group.leave(communicator.rank)
            ended.put(None)

    threads = [
        threading.Thread(
            target=target, args=(communicator,), daemon=True, name=f"replica {communicator.rank}"
        )
        for communicator in group.communicators()
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(ended, threads, timeout)
    except BaseException as error:
        group.fail(_message(error, 0))
        deadline = time.monotonic() + min(timeout, _PATIENCE)
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
    return [results[rank] for rank in range(size)]


def _wait(
    ended: queue.SimpleQueue[BaseException | None],
    threads: Sequence[threading.Thread],
    timeout: float,
) -> None:
    """Wait until all threads have ended; raise what the first raised.

    After the last collective nobody waits for a replica, so the one that has ended first does.
    """
    deadline = None
    for _ in threads:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            failure = ended.get(timeout=left)
        except queue.Empty:
            late = ", ".join(t.name.removeprefix("replica ") for t in threads if t.is_alive())
            raise ReplicaError(
                f"replica {late} has not ended {timeout:g} s after the first that did; raise "
                "--collective-timeout if it is only slow"
            ) from None
        if failure is not None:
            raise failure
        deadline = deadline or time.monotonic() + timeout + _GRACE
    for thread in threads:
        thread.join()


def _message(error: BaseException, rank: int) -> str:
    if isinstance(error, SyncBNError):
        return str(error)
    return str(ReplicaError(f"replica {rank}: {type(error).__name__}: {error}"))
