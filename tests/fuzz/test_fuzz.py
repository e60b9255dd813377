"""Odd files of many kinds through the command line: an exit code, one line, in time."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.fuzz import running

pytestmark = pytest.mark.filterwarnings("ignore")

SUITE, SWEEP, PARTS = range(200), range(10_000, 12_000), 20
MEBIBYTES = 2048


def assert_well_ended(folder: Path, numbers: range) -> None:
    found = [fault for seed in numbers for fault in running.faults(folder, seed)]
    assert not found, f"{len(found)} of {len(numbers)}:\n" + "\n".join(found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEBIBYTES << 10


def test_odd_files(tmp_path: Path) -> None:
    assert_well_ended(tmp_path, SUITE)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
def test_many_odd_files(part: int, tmp_path: Path) -> None:
    assert_well_ended(tmp_path, SWEEP[part::PARTS])
