"""Data functions of `calibrate --data` that go wrong on replica 1."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BATCH = 8
Samples = dict[str, npt.NDArray[np.float32]]


def _rank() -> int:
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK", "0")))


def _batches(count: int) -> Iterator[Samples]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield {"image": random.random((BATCH, 8, 8, 1), dtype=np.float32)}


def good() -> Iterator[Samples]:
    yield from _batches(4)


def raises() -> Iterator[Samples]:
    for number, batch in enumerate(_batches(4)):
        if number == 2 and _rank() == 1:
            raise ValueError("the disk is gone")
        yield batch


def ends_early() -> Iterator[Samples]:
    return _batches(2 if _rank() == 1 else 4)


def not_a_number() -> Iterator[Samples]:
    for number, batch in enumerate(_batches(4)):
        if number == 2:
            batch["image"][BATCH // 2 :] = np.nan
        yield batch


def killed() -> Iterator[Samples]:
    for number, batch in enumerate(_batches(4)):
        if number == 2 and _rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch


def stalls() -> Iterator[Samples]:
    for number, batch in enumerate(_batches(4)):
        if number == 2 and _rank() == 1:
            time.sleep(60)
        yield batch
