"""How far each MPI process of this machine has come, to be read when one is waited for in vain."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

OTHERS = "the other replicas"
_FOLDER = "PMIX_SERVER_TMPDIR"
"""Variable for the folder that mpirun makes for its processes, and removes behind them."""
_FILE = "syncbn-convert.arrivals"
_COUNT = struct.Struct("=q")


class Arrivals:
    """Counts of steps, one for each rank, in a file that the processes of a machine share.

    Args:
        environment: Where mpirun says which process this is; where it says nothing there are no
            counts, and nobody is called late.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._counts: mmap.mmap | None = None
        with contextlib.suppress(KeyError, ValueError, OSError):
            self._rank = int(environment["OMPI_COMM_WORLD_RANK"])
            self._size = int(environment["OMPI_COMM_WORLD_SIZE"])
            self._all_here = int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]) == self._size
            with os.fdopen(
                os.open(Path(environment[_FOLDER], _FILE), os.O_RDWR | os.O_CREAT, 0o600), "r+b"
            ) as file:
                os.ftruncate(file.fileno(), self._size * _COUNT.size)
                self._counts = mmap.mmap(file.fileno(), self._size * _COUNT.size)

    def arrive(self) -> None:
        """Count one step more of this process."""
        if self._counts is not None:
            place = self._rank * _COUNT.size
            (count,) = _COUNT.unpack_from(self._counts, place)
            _COUNT.pack_into(self._counts, place, count + 1)

    def late(self) -> str:
        """Return the ranks of this machine that have come less far than this one, as text."""
        if self._counts is None:
            return OTHERS
        counts = [count for (count,) in _COUNT.iter_unpack(self._counts)]
        late = [
            str(rank)
            for rank, count in enumerate(counts)
            if count < counts[self._rank] and (count or self._all_here)
        ]
        return f"replica {', '.join(late)}" if late else OTHERS
