"""Convert, fold and verify trained and well-known models that nobody here made."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import syncbn_convert
from syncbn_convert.files.model_file import load_model
from syncbn_convert.form import training_form
from tests.harness import run
from tests.models import DIGITS, light_model, ocr_model

MODELS = {
    "digits_cnn": (DIGITS, 5),
    "light_resnet50": (light_model("resnet50"), 53),
    "light_inception_v2": (light_model("inception_v2"), 69),
    "light_densenet121": (light_model("densenet121"), 121),
    "light_shufflenet": (light_model("shufflenet"), 49),
    "ocr_cls": (ocr_model("cls"), 35),
    "ocr_det": (ocr_model("det"), 3),
    "ocr_rec": (ocr_model("rec"), 6),
}

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Node = tuple[str, list[str], dict[str, Any]]


def batchnorms(model: onnx.ModelProto) -> list[Node]:
    return [
        (n.name, list(n.input), {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
        for n in model.graph.node
        if n.op_type == "BatchNormalization"
    ]


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Values of initializers, Constant and ConstantOfShape nodes by name."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "ConstantOfShape":
            fill = onnx.numpy_helper.to_array(node.attribute[0].t)
            values[node.output[0]] = np.full(values[node.input[0]], fill[0])
    return values


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    source, count = MODELS[name]
    form = tmp_path / "form.onnx"
    _, report = syncbn_convert.convert_file(source, form)
    assert (report.found, report.converted, report.all_reduces) == (count, count, count)
    assert report.verified
    assert report.max_relative_error is not None
    assert report.tolerance is not None
    assert report.max_relative_error <= report.tolerance
    onnx.checker.check_model(form, full_check=True)
    assert len(training_form.nodes(load_model(form))) == count

    again = tmp_path / "again.onnx"
    syncbn_convert.convert_file(source, again, verify=False)
    assert again.read_bytes() == form.read_bytes()

    folded = tmp_path / "folded.onnx"
    _, report = syncbn_convert.fold_file(form, folded)
    assert (report.found, report.converted, report.verified) == (count, count, True)
    original, result = onnx.load(source), onnx.load(folded)
    assert batchnorms(result) == batchnorms(original)
    before, after = constants(original), constants(result)
    for _, inputs, _ in batchnorms(original):
        for parameter in inputs[1:]:
            assert before[parameter].dtype == after[parameter].dtype
            assert before[parameter].tobytes() == after[parameter].tobytes()
    assert syncbn_convert.verify(source, folded).equal


def test_the_form_is_onnx_training_mode_on_unmodified_onnx_runtime() -> None:
    """Outputs and `.next` statistics against native `training_mode=1` nodes, end to end."""
    form = syncbn_convert.convert(onnx.load(DIGITS), verify=False)
    assert isinstance(form, onnx.ModelProto)
    native = onnx.load(DIGITS)
    wanted_names = ["probabilities"]
    for node in native.graph.node:
        if node.op_type == "BatchNormalization":
            outputs = [f"{name}.next" for name in node.input[3:]]
            node.output.extend(outputs)
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            native.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in outputs
            )
            wanted_names += outputs
    images = np.load(DIGITS.with_name("digits_test.npz"))["image"][:64]
    wanted, got = run(native, {"image": images}), run(form, {"image": images})
    assert sorted(got) == sorted(wanted_names)
    for name in wanted_names:
        scale = float(np.max(np.abs(wanted[name])))
        error = float(np.max(np.abs(got[name] - wanted[name]))) / scale
        assert error <= 64 * float(np.finfo(np.float32).eps), name


FUSED = {"light_densenet121": 59}
"""The others of that network stand before an activation, and what they read is read again."""


@pytest.mark.parametrize("name", MODELS)
def test_fused(name: str, tmp_path: Path) -> None:
    source, count = MODELS[name]
    _require_fused(source, tmp_path / "fused.onnx", count, FUSED.get(name, count))


def test_resnet50_of_full_size_is_fused(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("resnet50", BENCHMARKS / "resnet50.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["resnet50"] = module
    spec.loader.exec_module(module)
    model = module.build()
    generator = np.random.default_rng(0)
    parameters = {name for n in batchnorms(model) for name in n[1][1:]}
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            values = generator.uniform(0.5, 1.5, tensor.dims).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    source = tmp_path / "resnet50.onnx"
    onnx.save(model, source)
    _require_fused(source, tmp_path / "fused.onnx", 53, 53)


def _require_fused(source: Path, target: Path, found: int, fused: int) -> None:
    _, report = syncbn_convert.fuse_file(source, target)
    assert report.verified
    norms = [record for record in report.records if "operator" not in record.detail]
    assert len(norms) == found
    assert sum(record.action == "fused" for record in norms) == fused
    others = [record for record in report.records if "operator" in record.detail]
    assert {record.detail["operator"] for record in others} <= {"Add", "Sub", "Mul", "Div"}
    assert {record.reason for record in report.skipped} <= {
        "a value on the way to its weights is read by 2 nodes"
    }
    assert len(batchnorms(onnx.load(target))) == found - fused
    assert syncbn_convert.verify(source, target).equal
