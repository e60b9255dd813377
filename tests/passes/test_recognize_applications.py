"""Keras models that tf2onnx exported by the ordinary road, with normalization taken apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import syncbn_convert
from syncbn_convert import ConvertOptions, VerifyOptions
from syncbn_convert.verification import verify_files
from tests.harness import run

pytestmark = pytest.mark.timeout(900)
"""A sweep over big models, beside others, takes more than the usual limit."""

ROOT = Path(__file__).parents[2]
EPS = float(np.finfo(np.float32).eps)


def export(name: str, size: int, mode: str, path: Path) -> int:
    """Export a model; return the number of its normalization layers."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.passes.export_decomposed", name, str(size), mode, str(path)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def transposes(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        pytest.param("MobileNetV2Small", 32, 11, marks=pytest.mark.sweep),
        pytest.param("MobileNetV2", 64, 1, marks=pytest.mark.sweep),
        pytest.param("ResNet50", 64, 1, marks=pytest.mark.sweep),
        pytest.param("DenseNet121", 64, 1, marks=pytest.mark.sweep),
    ],
)
def test_training_export(name: str, size: int, left: int, tmp_path: Path) -> None:
    """All layers are found; the form on one replica returns what the export does.

    Its tolerance is 8 times what rounding errors of one input EPS do to the export, or what is
    allowed for its largest sum. At 32 pixels, where the last layers see 1 pixel of each sample,
    that is more than at 64.
    """
    source, target = tmp_path / "model.onnx", tmp_path / "form.onnx"
    layers = export(name, size, "training", source)
    shapes = {"x": (4, size, size, 3)}
    options = VerifyOptions(input_shapes=shapes)
    _, report = syncbn_convert.convert_file(source, target, verify_options=options)
    assert report.verified
    assert report.found == report.converted == report.all_reduces == layers
    assert all("recognized in" in record.detail["changes"][0] for record in report.records)
    original, form = onnx.load(source), onnx.load(target)
    assert transposes(form) == left < transposes(original)
    outputs = [value.name for value in original.graph.output]
    compared = verify_files(source, target, options, outputs=outputs)
    assert compared.equal, compared
    assert compared.tolerance < 0.1


@pytest.mark.parametrize(
    ("name", "size"),
    [("ConvReluNorm", 16), pytest.param("DenseNet121", 64, marks=pytest.mark.sweep)],
)
def test_inference_export(name: str, size: int, tmp_path: Path) -> None:
    """What could not be folded is recognized on request; folded, the form is the export again."""
    source, target = tmp_path / "model.onnx", tmp_path / "form.onnx"
    layers = export(name, size, "inference", source)
    options = VerifyOptions(input_shapes={"x": (4, size, size, 3)})
    _, report = syncbn_convert.convert_file(
        source, target, ConvertOptions(recognize_affine=True), verify_options=options
    )
    assert report.verified
    before_relu = {"DenseNet121": 59}.get(name, 0)
    assert report.converted == layers - before_relu
    folded = tmp_path / "folded.onnx"
    syncbn_convert.fold_file(target, folded, verify_options=options)
    x = {"x": np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)}
    (wanted,) = run(onnx.load(source), x).values()
    (found,) = run(onnx.load(folded), x).values()
    assert np.abs(found - wanted).max() <= 256 * EPS * np.abs(wanted).max()
