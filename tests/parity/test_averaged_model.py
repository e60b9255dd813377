"""The job that `calibrate` is for: weights averaged over two trainings need new statistics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper as onh
import pytest

from syncbn_convert import CalibrateOptions, ReplicaOptions
from syncbn_convert.commands.calibrate import calibrate
from tests.harness import run
from tests.models import DIGITS

HALF_A_POINT = 0.005


def accuracy(model: onnx.ModelProto) -> float:
    data = np.load(DIGITS.with_name("digits_test.npz"))
    probabilities = run(model, {"image": data["image"]})["probabilities"]
    return float(np.mean(probabilities.argmax(axis=1) == data["label"]))


def with_weights(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    model = onnx.load(DIGITS)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onh.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    return model


@pytest.mark.parametrize("replicas", [1, 4])
def test_reset_statistics_come_back(replicas: int) -> None:
    reset = {
        tensor.name: np.full(tensor.dims, "variance" in tensor.name, np.float32)
        for tensor in onnx.load(DIGITS).graph.initializer
        if "/moving_" in tensor.name
    }
    model = with_weights(reset)
    original = accuracy(onnx.load(DIGITS))
    assert accuracy(model) < original - 0.1
    assert calibrated_accuracy(model, replicas) >= original - HALF_A_POINT


def test_an_averaged_model(tmp_path: Path) -> None:
    output = tmp_path / "averaged.npz"
    script = Path(__file__).with_name("averaged_weights.py")
    subprocess.run([sys.executable, str(script), str(output)], check=True, timeout=250)
    with np.load(output) as archive:
        averaged = {name: archive[name] for name in archive.files if "/moving_" not in name}
    original = onnx.load(DIGITS)
    kept = {t.name: onh.to_array(t) for t in original.graph.initializer}
    assert any(np.any(value != kept[name]) for name, value in averaged.items())
    for replicas in (1, 4):
        found = calibrated_accuracy(with_weights(averaged), replicas)
        assert found >= accuracy(original) - HALF_A_POINT


def calibrated_accuracy(model: onnx.ModelProto, replicas: int) -> float:
    result = calibrate(
        model,
        DIGITS.with_name("digits_train.npz"),
        CalibrateOptions(batch_size=128),
        replicas=ReplicaOptions(replicas=replicas),
    )
    assert isinstance(result, onnx.ModelProto)
    return accuracy(result)
