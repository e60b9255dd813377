"""The same global batches give the same statistics on every engine and number of replicas."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper as onh
import onnxruntime
import pytest

from syncbn_convert import CalibrateOptions, ReplicaOptions
from syncbn_convert.commands.calibrate import calibrate, calibrate_file
from syncbn_convert.form.moving_statistics import load
from tests.faults.launch import Launcher, on_replicas
from tests.models import DIGITS

from .calibrations import DATA, METHODS, calibrate_all, statistics_file

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def one_replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-replica")
    calibrate_all(folder)
    return folder


def _assert_same(folder: Path, expected: Path) -> None:
    for method in METHODS:
        first, second = (statistics_file(folder, method, run) for run in range(2))
        assert first.read_bytes() == second.read_bytes()
        reference = load(statistics_file(expected, method, 0)).tensors
        found = load(first).tensors
        assert found.keys() == reference.keys()
        for name, values in reference.items():
            error = np.abs(found[name].astype(np.float64) - values).max() / np.abs(values).max()
            assert error <= TOLERANCE, f"{method} {name}: {error}"


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 8])
def test_threads(replicas: int, one_replica: Path, tmp_path: Path) -> None:
    calibrate_all(tmp_path, replicas)
    _assert_same(tmp_path, one_replica)


@pytest.mark.parametrize(("launcher", "replicas"), [("mpi", 2), ("mpi", 4), ("torch", 2)])
def test_processes(launcher: Launcher, replicas: int, one_replica: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.calibrations", str(tmp_path)]
    finished = on_replicas(launcher, replicas, command)
    assert finished.exit_code == 0, finished.stderr
    _assert_same(tmp_path, one_replica)


def test_methods_differ(one_replica: Path) -> None:
    precise, moving = (load(statistics_file(one_replica, name, 0)) for name in METHODS)
    assert precise.provenance["replicas"] == 1
    assert (precise.provenance["batches_counted"], precise.provenance["samples"]) == (4, 360)
    name = "hidden_bn/moving_mean"
    assert not np.allclose(precise.tensors[name], moving.tensors[name], rtol=1e-4)


def _accuracy(model: onnx.ModelProto) -> float:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    test = np.load(DIGITS.with_name("digits_test.npz"))
    (probabilities,) = session.run(None, {"image": test["image"]})
    hits: npt.NDArray[np.bool_] = np.asarray(probabilities).argmax(axis=1) == test["label"]
    return float(100 * hits.mean())


def _without_statistics() -> onnx.ModelProto:
    model = onnx.load(DIGITS)
    for tensor in model.graph.initializer:
        if "moving_" in tensor.name:
            value = np.zeros_like if "mean" in tensor.name else np.ones_like
            tensor.CopyFrom(onh.from_array(value(onh.to_array(tensor)), tensor.name))
    return model


@pytest.mark.parametrize("replicas", [1, 4])
def test_calibration_restores_the_accuracy(replicas: int) -> None:
    original = _accuracy(onnx.load(DIGITS))
    lost = _without_statistics()
    assert _accuracy(lost) < original - 50
    restored = calibrate(
        lost, DATA, CalibrateOptions(batch_size=64), replicas=ReplicaOptions(replicas=replicas)
    )
    assert isinstance(restored, onnx.ModelProto)
    assert abs(_accuracy(restored) - original) <= 0.5


def test_same_input_and_options_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        calibrate_file(
            DIGITS,
            DATA,
            tmp_path / name,
            CalibrateOptions(batch_size=90, batches=2),
            replicas=ReplicaOptions(replicas=2),
            verify=False,
        )
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
