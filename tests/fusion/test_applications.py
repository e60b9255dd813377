"""Models of keras.applications, whose normalization tf2onnx wrote in elementwise operators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import syncbn_convert
from syncbn_convert import VerifyOptions

EXPORT = Path(__file__).with_name("export_application.py")
SIZE = 64
NOT_FUSED = {"DenseNet121": 62}
"""They stand before an activation, and what they read is read again."""


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        pytest.param("ResNet50", marks=pytest.mark.sweep),
        pytest.param("EfficientNetB0", marks=pytest.mark.sweep),
        pytest.param("DenseNet121", marks=pytest.mark.sweep),
        pytest.param("InceptionV3", marks=pytest.mark.sweep),
        pytest.param("Xception", marks=pytest.mark.sweep),
    ],
)
def test_every_normalization_disappears(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    size = 96 if name in ("InceptionV3", "Xception") else SIZE
    done = subprocess.run(
        [sys.executable, str(EXPORT), name, str(size), str(source)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    layers = int(done.stdout.split()[-1])
    _, report = syncbn_convert.fuse_file(
        source, target, verify_options=VerifyOptions(input_shapes={"x": (2, size, size, 3)})
    )
    assert report.verified
    assert report.converted == layers - NOT_FUSED.get(name, 0)
    fused = onnx.load(target)
    assert _unused(fused) <= _unused(onnx.load(source))
    left = [node.op_type for node in fused.graph.node]
    assert left.count("Sqrt") == left.count("Reciprocal") == NOT_FUSED.get(name, 0)


def _unused(model: onnx.ModelProto) -> set[str]:
    read = {name for node in model.graph.node for name in node.input}
    return {tensor.name for tensor in model.graph.initializer} - read
