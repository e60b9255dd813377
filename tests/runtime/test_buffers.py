"""Sums of buffers have the same bits on every engine: those of addition in the order of ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from syncbn_convert.runtime import LocalCommunicator
from syncbn_convert.runtime.replica_threads import on_threads
from tests.faults.launch import Launcher, on_replicas

from .buffers import LENGTHS, Array, given, sums


def in_order(replicas: int) -> list[Array]:
    everyone = [given(rank) for rank in range(replicas)]
    found = []
    for pieces in zip(*everyone, strict=True):
        total = pieces[0].copy()
        for piece in pieces[1:]:
            total = total + piece
        found.append(total)
    return found


def require_same_bits(got: list[Array], wanted: list[Array]) -> None:
    assert len(got) == len(wanted) == 2 * len(LENGTHS)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_one_replica_gets_its_own_back() -> None:
    require_same_bits(sums(LocalCommunicator()), given(0))


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_threads(replicas: int) -> None:
    for found in on_threads(replicas, sums, timeout=30):
        require_same_bits(found, in_order(replicas))


def test_the_order_of_addition_shows() -> None:
    pieces = [given(rank)[4] for rank in range(3)]
    assert np.any((pieces[0] + pieces[1]) + pieces[2] != pieces[0] + (pieces[1] + pieces[2]))


@pytest.mark.parametrize(
    ("launcher", "replicas"), [("mpi", 3), pytest.param("torch", 3, marks=pytest.mark.sweep)]
)
def test_processes(launcher: Launcher, replicas: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.buffers", str(tmp_path)]
    finished = on_replicas(launcher, replicas, command)
    assert finished.exit_code == 0, finished.stderr
    for rank in range(replicas):
        with np.load(tmp_path / f"{rank}.npz") as archive:
            require_same_bits([archive[name] for name in archive.files], in_order(replicas))
