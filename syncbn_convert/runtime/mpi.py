"""Replicas as MPI processes, through mpi4py; `mpirun -n N` starts them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from syncbn_convert.errors import ReplicaError, UsageError
from syncbn_convert.options.replicas import DEFAULT_TIMEOUT
from syncbn_convert.runtime.communicator import (
    Buffer,
    Float64,
    check_group_size,
    shares,
    sum_in_order,
)

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

    def __init__(self, comm: MPI.Comm | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._mpi = _import_mpi()
        self._comm: MPI.Comm = comm if comm is not None else self._mpi.COMM_WORLD
        self._timeout = timeout
        self._collectives = 0
        self._groups: dict[int, MpiCommunicator] = {}
        self.rank = self._comm.Get_rank()
        self.size = self._comm.Get_size()
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
        self.barrier()
        return self._comm.allgather(value)

    def broadcast(self, value: Any) -> Any:
        """Return replica 0's value."""
        self.barrier()
        return self._comm.bcast(value, root=0)

    def barrier(self) -> None:
        """Wait until all replicas are here."""
        self._wait(self._comm.Ibarrier())

    def split(self, group_size: int) -> MpiCommunicator:
        """Return this replica's end of its group of consecutive ranks."""
        check_group_size(group_size, self.size)
        if group_size not in self._groups:
            comm = self._comm.Split(color=self.rank // group_size, key=self.rank)
            self._groups[group_size] = MpiCommunicator(comm, self._timeout)
        return self._groups[group_size]

    def abort(self, message: str) -> None:
        """End all processes; MPI has no gentler way to reach one that waits."""
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
        self._mpi.COMM_WORLD.Abort(1)

    def close(self) -> None:
        """Do nothing: mpi4py finalizes MPI when the process ends."""

    def _wait(self, request: MPI.Request) -> None:
        self._collectives += 1
        deadline = time.monotonic() + self._timeout
        spins = 0
        while not request.Test():
            spins += 1
            if spins > _SPINS_BEFORE_YIELDING:
                _yield_core()
                if time.monotonic() > deadline:
                    raise ReplicaError(
                        f"replica {self.rank} waited {self._timeout:g} s in collective "
                        f"{self._collectives} for the other replicas; raise "
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
