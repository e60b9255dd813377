"""The same faults where replicas are threads of one process, and engines that are not installed."""

from __future__ import annotations

import itertools
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncbn_convert import CalibrateOptions, ReplicaOptions
from syncbn_convert.cli.main import main
from syncbn_convert.commands.calibrate import calibrate_file
from syncbn_convert.errors import ReplicaError
from tests.models import DIGITS

from . import samples

Source = Callable[[], Iterator[dict[str, Any]]]


class _OneReplica:
    """Data that goes wrong on whichever replica asks second."""

    def __init__(self, goes_wrong: Source) -> None:
        self._calls = itertools.count()
        self._goes_wrong = goes_wrong

    def __call__(self) -> Iterator[dict[str, Any]]:
        return self._goes_wrong() if next(self._calls) == 1 else samples.good()


def _raises() -> Iterator[dict[str, Any]]:
    yield from itertools.islice(samples.good(), 2)
    raise ValueError("the disk is gone")


def _ends_early() -> Iterator[dict[str, Any]]:
    return itertools.islice(samples.good(), 2)


def _stalls() -> Iterator[dict[str, Any]]:
    yield from itertools.islice(samples.good(), 2)
    threading.Event().wait(4)


@pytest.mark.parametrize(
    ("goes_wrong", "message"),
    [
        (_raises, r"replica \d: data '.*' raised ValueError: the disk is gone; correct .*"),
        (_ends_early, r"replica \d ran out of data after 2 batches, the others did not; .*"),
        (_stalls, r"replica \d waited 1 s in collective \d+ for replica \d; .*"),
    ],
)
def test_fault_in_the_data_of_one_replica(goes_wrong: Source, message: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ReplicaError) as caught:
        calibrate_file(
            DIGITS,
            _OneReplica(goes_wrong),
            tmp_path / "out.onnx",
            CalibrateOptions(batch_size=8),
            replicas=ReplicaOptions(replicas=3, timeout=1),
        )
    assert re.fullmatch(message, str(caught.value))
    assert time.monotonic() - start < 20
    assert list(tmp_path.iterdir()) == []


def test_nan_names_node_and_replica(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", str(DIGITS), "--data", "tests.faults.samples:not_a_number"]
    arguments += ["-o", str(tmp_path / "out.onnx"), "--replicas", "2", "--batch-size", "8"]
    assert main(arguments) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == (
        "error: node 'stem_bn': batch statistics are not finite in step 3, from replica 1; look "
        "for NaN or infinity in its data, or overflow before the node\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("engine", "package"), [("mpi", "mpi4py"), ("torch", "torch")])
def test_an_engine_that_is_not_installed(
    engine: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["calibrate", str(DIGITS), "--data", "absent.npz", "--engine", engine]
    assert main([*arguments, "-o", str(tmp_path / "out.onnx")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: the {engine} engine needs {package}")
    assert message.endswith(f": pip install 'syncbn-convert[{engine}]'\n")
    assert message.count("\n") == 1
