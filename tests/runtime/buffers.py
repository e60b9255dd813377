"""Sums vectors of several types and lengths; a replica of mpirun or torchrun runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.runtime import Communicator, open_communicator
from syncbn_convert.runtime.engines import engine_in_use

Array = npt.NDArray[Any]

LENGTHS = (0, 1, 3, 5, 100_003)


def given(rank: int) -> list[Array]:
    """What one replica gives: magnitudes so apart that the order of addition shows."""
    random = np.random.default_rng(rank)
    return [
        (random.normal(size=length) * 10.0 ** random.integers(-6, 7, size=length)).astype(dtype)
        for dtype in (np.float32, np.float64)
        for length in LENGTHS
    ]


def sums(communicator: Communicator) -> list[Array]:
    """The sums, one buffer after the other; what was given stays as it is."""
    found = []
    for values in given(communicator.rank):
        before = values.copy()
        found.append(communicator.all_reduce_buffer(values).copy())
        np.testing.assert_array_equal(values, before)
    return found


if __name__ == "__main__":
    communicator = open_communicator(engine_in_use("auto", 1))
    np.savez(Path(sys.argv[1]) / f"{communicator.rank}.npz", *sums(communicator))
    communicator.close()
