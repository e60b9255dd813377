"""BatchNormalization whose training_mode another tool has dropped, and not its outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import syncbn_convert
from syncbn_convert import ConversionError
from syncbn_convert.form.batchnorm import MODE_LOST
from tests.harness import run
from tests.lenient_models import Edit, convolution, edited

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def _mode(model: onnx.ModelProto, value: int | None = None) -> onnx.NodeProto:
    (norm,) = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    del norm.attribute[:]
    if value is not None:
        norm.attribute.append(oh.make_attribute("training_mode", value))
    assert isinstance(norm, onnx.NodeProto)
    return norm


def _returned(model: onnx.ModelProto) -> None:
    _mode(model)
    model.graph.output.append(oh.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, [4]))


def _read(model: onnx.ModelProto) -> None:
    _mode(model)
    model.graph.node.append(oh.make_node("Sqrt", ["var"], ["deviation"]))
    model.graph.output.append(oh.make_tensor_value_info("deviation", onnx.TensorProto.FLOAT, [4]))


LOST: dict[str, Edit] = {
    "three outputs": _mode,
    "outputs without names": lambda model: _mode(model).output.__setitem__(slice(1, 3), ["", ""]),
    "mode of 0": lambda model: _mode(model, 0),
    "returned": _returned,
    "read": _read,
}


def _sound() -> onnx.ModelProto:
    model = convolution()
    for node in model.graph.node:
        del node.attribute[:]
    model.graph.node[0].attribute.append(oh.make_attribute("pads", [1, 1, 1, 1]))
    return model


@pytest.mark.parametrize("kind", LOST)
def test_fold_repairs_it(kind: str) -> None:
    model = edited(LOST[kind], training=True)
    folded, report = syncbn_convert.fold_with_report(model, verify=kind == "returned")
    assert isinstance(folded, onnx.ModelProto)
    (record,) = report.records
    assert record.action == "folded"
    assert "outputs of training mode without the mode" in record.reason
    assert report.verified == (kind == "returned")
    expected = run(_sound(), {"x": X})["y"]
    np.testing.assert_allclose(run(folded, {"x": X})["y"], expected, rtol=0, atol=1e-5)
    gone = [note for note in report.notes if "'mean' (statistic of" in note]
    assert len(gone) == (kind == "returned")


@pytest.mark.parametrize("kind", ["three outputs", "outputs without names"])
def test_every_command_says_what_it_is(kind: str) -> None:
    model = edited(LOST[kind], training=True)
    note = f"node 'norm': {MODE_LOST}"
    assert note in syncbn_convert.inspect(model).notes
    form, report = syncbn_convert.convert_with_report(model, verify=kind == "three outputs")
    assert note in report.notes
    with pytest.raises(ConversionError, match=r"node 'norm' cannot be fused.*'syncbn-convert fold"):
        syncbn_convert.fuse(model, verify=False)
    folded = syncbn_convert.fold(form, verify=False)
    assert isinstance(folded, onnx.ModelProto)
    expected = run(_sound(), {"x": X})["y"]
    np.testing.assert_allclose(run(folded, {"x": X})["y"], expected, rtol=0, atol=1e-5)


def test_frozen_it_is_repaired() -> None:
    model = edited(LOST["three outputs"], training=True)
    options = syncbn_convert.ConvertOptions(freeze=("^norm$",))
    form = syncbn_convert.convert(model, options, verify=False)
    assert isinstance(form, onnx.ModelProto)
    (norm,) = (node for node in form.graph.node if node.name == "norm")
    assert list(norm.output) == ["h"]


def test_training_mode_with_its_outputs_is_not_lost() -> None:
    assert syncbn_convert.inspect(convolution(training=True)).notes == []
