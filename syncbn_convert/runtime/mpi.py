"""Replicas as MPI processes, through mpi4py; `mpirun -n N` starts them."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from syncbn_convert.errors import ReplicaError, UsageError, printable
from syncbn_convert.files import scratch
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT
from syncbn_convert.runtime.arrivals import Arrivals
from syncbn_convert.runtime.communicator import (
    Buffer,
    Float64,
    check_group_size,
    shares,
    sum_in_order,
)
from syncbn_convert.runtime.deadline import ended_after

if TYPE_CHECKING:
    from mpi4py import MPI

_SPINS_BEFORE_YIELDING = 50
_BLOCK = 1 << 27
"""Elements that travel at once: MPI counts with 32 bits."""


def _sleep_zero() -> None:
    time.sleep(0)


_yield_core: Callable[[], None] = getattr(os, "sched_yield", _sleep_zero)
"""Let another process of this core run. `time.sleep(0)` on Linux sleeps for the timer slack, tens
of microseconds, which is longer than the collective takes."""


class MpiCommunicator:
    """One process's end of an MPI communicator.

    Args:
        comm: The communicator; None takes MPI_COMM_WORLD.
        timeout: Seconds that a replica waits in one collective.

    Raises:
        UsageError: if mpi4py or an MPI library is not installed.
    """

    shares_memory = False

    def __init__(
        self,
        comm: MPI.Comm | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._timeout = timeout
        self._arrivals = arrivals or Arrivals()
        self._collectives = 0
        self._groups: dict[int, MpiCommunicator] = {}
        with self._limited("to start"):
            self._mpi = _import_mpi()
            self._comm: MPI.Comm = comm if comm is not None else self._mpi.COMM_WORLD
            self.rank = self._comm.Get_rank()
            self.size = self._comm.Get_size()
        with self._limited("to connect"):
            self.local_size = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED).Get_size()

    def all_reduce_sum(self, values: Float64) -> Float64:
        """Sum with MPI_Iallreduce, which can be given a time limit."""
        total = np.empty_like(values)
        self._wait(self._comm.Iallreduce(values, total, op=self._mpi.SUM))
        return total

    def all_reduce_buffer(self, values: Buffer) -> Buffer:
        """Send each share of the vector to the replica that adds it up, and the sums to all.

        MPI's own reduction may add in any order.
        """
        total = np.empty_like(values)
        for start in range(0, len(values), _BLOCK):
            block = slice(start, start + _BLOCK)
            self._sum_block(values[block], total[block])
        return total

    def _sum_block(self, values: Buffer, total: Buffer) -> None:
        parts = shares(len(values), self.size)
        counts = [part.stop - part.start for part in parts]
        starts = [part.start for part in parts]
        own = counts[self.rank]
        pieces = np.empty((self.size, own), values.dtype)
        places = [own * rank for rank in range(self.size)]
        self._wait(
            self._comm.Ialltoallv([values, (counts, starts)], [pieces, ([own] * self.size, places)])
        )
        mine = np.empty(own, values.dtype)
        sum_in_order(list(pieces), mine)
        self._wait(self._comm.Iallgatherv(mine, [total, (counts, starts)]))

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all replicas."""
        mine = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self._wait(self._comm.Iallgather(np.array([mine.size], np.int64), lengths))
        ends = np.cumsum(lengths)
        all_bytes = np.empty(ends[-1], np.uint8)
        self._wait(self._comm.Iallgatherv(mine, [all_bytes, (lengths, ends - lengths)]))
        return [pickle.loads(piece.tobytes()) for piece in np.split(all_bytes, ends[:-1])]

    def broadcast(self, value: Any) -> Any:
        """Return replica 0's value."""
        content = np.frombuffer(pickle.dumps(value if self.rank == 0 else None), np.uint8)
        length = np.array([content.size], np.int64)
        self._wait(self._comm.Ibcast(length, root=0))
        received = content.copy() if self.rank == 0 else np.empty(length[0], np.uint8)
        for start in range(0, length[0], _BLOCK):
            self._wait(self._comm.Ibcast(received[start : start + _BLOCK], root=0))
        return pickle.loads(received.tobytes())

    def barrier(self) -> None:
        """Wait until all replicas are here."""
        self._wait(self._comm.Ibarrier())

    def split(self, group_size: int) -> MpiCommunicator:
        """Return this replica's end of its group of consecutive ranks."""
        check_group_size(group_size, self.size)
        if group_size not in self._groups:
            with self._limited(f"to form groups of {group_size}"):
                comm = self._comm.Split(color=self.rank // group_size, key=self.rank)
            self._groups[group_size] = MpiCommunicator(comm, self._timeout, arrivals=self._arrivals)
        return self._groups[group_size]

    def abort(self, message: str) -> None:
        """End all processes; MPI has no gentler way to reach one that waits."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"error: {printable(message)}\n")
            sys.stderr.flush()
        with self._limited("to end"):
            self._mpi.COMM_WORLD.Abort(1)

    def when_failed(self, stop: Callable[[str], None]) -> None:
        """Do nothing: other replicas are other processes."""

    def close(self) -> None:
        """Part from the others, who may end before this one, if the process ends with its command.

        Others go on to use MPI; mpi4py finalizes it when their process ends.
        """
        if scratch.is_own_process() and not self._mpi.Is_finalized():
            self.barrier()
            with self._limited("to end"):
                self._mpi.Finalize()

    def _limited(self, purpose: str) -> contextlib.AbstractContextManager[None]:
        """Bound a call of MPI that returns when all have made it, and holds the interpreter."""
        rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
        self._arrivals.arrive()
        return ended_after(
            self._timeout,
            f"replica {rank} waited {self._timeout:g} s for {scratch.LATE} {purpose}; look at what "
            "became of it, or raise --collective-timeout if it is only slow",
        )

    def _wait(self, request: MPI.Request) -> None:
        self._collectives += 1
        self._arrivals.arrive()
        deadline = time.monotonic() + self._timeout
        spins = 0
        while not request.Test():
            spins += 1
            if spins > _SPINS_BEFORE_YIELDING:
                _yield_core()
                if time.monotonic() > deadline:
                    raise ReplicaError(
                        f"replica {self.rank} waited {self._timeout:g} s in collective "
                        f"{self._collectives} for {self._arrivals.late()}; raise "
                        "--collective-timeout if one is only slow"
                    )


def _import_mpi() -> Any:
    try:
        from mpi4py import MPI as mpi  # noqa: N811
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"the mpi engine needs mpi4py and an MPI library ({error}): "
            "pip install 'syncbn-convert[mpi]'"
        ) from error
    return mpi
