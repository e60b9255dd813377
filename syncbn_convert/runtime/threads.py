"""Replicas as threads of one process: the embedded engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from syncbn_convert.errors import ReplicaError
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT
from syncbn_convert.runtime.communicator import (
    Buffer,
    Float64,
    check_group_size,
    shares,
    sum_in_order,
)


class ThreadGroup:
    """What the replicas of one group share: a barrier, and a slot for each replica's value.

    Args:
        size: Number of replicas.
        timeout: Seconds that a replica waits in one collective.
        first_rank: What messages call the first replica; the methods count from 0.
    """

    def __init__(self, size: int, timeout: float = DEFAULT_TIMEOUT, *, first_rank: int = 0) -> None:
        self.size = size
        self.timeout = timeout
        self.first_rank = first_rank
        self._barrier = threading.Barrier(size)
        self._slots: list[Any] = [None] * size
        self._arrived = [0] * size
        self._lock = threading.Lock()
        self._failure = ""
        self._left: set[int] = set()
        self._groups: dict[tuple[int, int], ThreadGroup] = {}
        self._stops: list[Callable[[str], None]] = []

    def communicators(self) -> list[ThreadCommunicator]:
        """Return the ends of the group, one for each replica."""
        return [ThreadCommunicator(self, rank) for rank in range(self.size)]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return the values of all replicas once all have given theirs."""
        self._arrived[rank] += 1
        self._slots[rank] = value
        self._check_nobody_left()
        self._wait(rank)
        values = list(self._slots)
        self._wait(rank)
        return values

    def fail(self, message: str) -> None:
        """Wake everybody who waits; the first message is the one they raise."""
        with self._lock:
            self._failure = self._failure or message
            groups = list(self._groups.values())
            stops, first = list(self._stops), self._failure
        self._barrier.abort()
        for stop in stops:
            stop(first)
        for group in groups:
            group.fail(message)

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Call `stop` with the message as soon as a replica has failed."""
        with self._lock:
            self._stops.append(stop)
            failure = self._failure
        if failure:
            stop(failure)

    def leave(self, rank: int) -> None:
        """Note that a replica takes part in no further collective."""
        with self._lock:
            self._left.add(rank)
            inner = [
                (group, rank % size)
                for (size, index), group in self._groups.items()
                if rank // size == index
            ]
        self._check_nobody_left()
        for group, inner_rank in inner:
            group.leave(inner_rank)

    def _check_nobody_left(self) -> None:
        with self._lock:
            most = max(range(self.size), key=self._arrived.__getitem__)
            gone = [rank for rank in self._left if self._arrived[rank] < self._arrived[most]]
        if gone:
            self.fail(
                f"replica {self.first_rank + gone[0]} ended after {self._arrived[gone[0]]} "
                f"collectives, but replica {self.first_rank + most} is in collective "
                f"{self._arrived[most]}; give all replicas the same number of steps"
            )

    def subgroup(self, rank: int, group_size: int) -> ThreadCommunicator:
        """Return this replica's end of its group of `group_size` consecutive ranks."""
        key = (group_size, rank // group_size)
        with self._lock:
            if key not in self._groups:
                first = self.first_rank + rank - rank % group_size
                self._groups[key] = ThreadGroup(group_size, self.timeout, first_rank=first)
            group, failure = self._groups[key], self._failure
        if failure:
            group.fail(failure)
        return ThreadCommunicator(group, rank % group_size)

    def _wait(self, rank: int) -> None:
        try:
            self._barrier.wait(self.timeout)
        except threading.BrokenBarrierError:
            raise ReplicaError(self._failure or self._late(rank)) from None

    def _late(self, rank: int) -> str:
        mine = self._arrived[rank]
        late = [
            str(self.first_rank + other)
            for other, count in enumerate(self._arrived)
            if count < mine
        ]
        return (
            f"replica {self.first_rank + rank} waited {self.timeout:g} s in collective {mine} for "
            f"replica {', '.join(late) or '?'}; raise --collective-timeout if it is only slow"
        )


class ThreadCommunicator:
    """One thread's end of a ThreadGroup."""

    shares_memory = True

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.rank = rank
        self.size = group.size
        self.local_size = group.size
        self._group = group

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Sum in the order of ranks, so that all replicas get the same bits."""
        pieces = self._group.exchange(self.rank, values)
        total: Float64 = pieces[0].copy()
        for piece in pieces[1:]:
            total += piece
        return total

    def all_reduce_buffer(self, values: Buffer) -> Buffer:
        """Add one share of the vector each, into a result that all have in common."""
        room = np.empty_like(values) if self.rank == 0 else None
        given = self._group.exchange(self.rank, (values, room))
        total: Buffer = given[0][1]
        mine = shares(len(values), self.size)[self.rank]
        sum_in_order([piece[mine] for piece, _ in given], total[mine])
        self.barrier()
        return total

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all replicas; they are shared, not copied."""
        return self._group.exchange(self.rank, value)

    def broadcast(self, value: Any) -> Any:
        """Return replica 0's value, shared."""
        return self._group.exchange(self.rank, value)[0]

    def barrier(self) -> None:
        """Wait until all replicas are here."""
        self._group.exchange(self.rank, None)

    def split(self, group_size: int) -> ThreadCommunicator:
        """Return this replica's end of its group of consecutive ranks."""
        check_group_size(group_size, self.size)
        return self._group.subgroup(self.rank, group_size)

    def abort(self, message: str) -> None:
        """Wake the others with `message`."""
        self._group.fail(message)

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Call `stop` with the message as soon as a replica has failed."""
        self._group.when_failed(stop)

    def close(self) -> None:
        """Do nothing: the group goes with its last communicator."""
