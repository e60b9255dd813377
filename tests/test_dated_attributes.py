"""Attributes that a node's opset does not have: taken where they say what it means anyway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper as onh
import onnx.parser
import onnx_ir as ir
import pytest

import syncbn_convert
from syncbn_convert import ConversionError, ModelFileError
from tests.fusion.cases import X4, W, norm, random
from tests.harness import run

FEEDS = {"x": random(2, 4, 7, 7)}
PARAMS = {**W, **norm(6), "k": random(6, 1, 1), "shape": np.array([-1, 6, 5, 5])}


def _bn(attributes: str, outputs: str = "t") -> str:
    given = f"<{attributes}>" if attributes else ""
    return f"c = Conv(x, w) [bn] {outputs} = BatchNormalization{given}(c, s, b, m, v)"


TAKEN = {
    "spatial": (9, f"{_bn('spatial = 1')} y = Relu(t)"),
    "spatial of opset 15": (15, f"{_bn('spatial = 1')} y = Relu(t)"),
    "is_test": (7, f"{_bn('is_test = 1')} y = Relu(t)"),
    "is_test and spatial": (12, f"{_bn('is_test = 1, spatial = 1')} y = Relu(t)"),
    "consumed_inputs": (9, f"{_bn('consumed_inputs = [0, 0, 0, 1, 1]')} y = Relu(t)"),
    "consumed_inputs elsewhere": (8, f"{_bn('')} y = Relu<consumed_inputs = [0]>(t)"),
    "training_mode before its opset": (11, f"{_bn('training_mode = 0')} y = Relu(t)"),
    "Dropout that tests": (10, f"{_bn('')} y = Dropout<ratio = 0.3, is_test = 1>(t)"),
    "Dropout with a ratio": (13, f"{_bn('')} y = Dropout<ratio = 0.3>(t)"),
    "broadcast": (13, f"{_bn('')} y = Add<broadcast = 1>(t, k)"),
    "default of a later opset": (11, f"{_bn('')} y = Reshape<allowzero = 0>(t, shape)"),
    "ceil_mode of a later opset": (
        9,
        f"{_bn('')} y = MaxPool<kernel_shape = [2, 2], ceil_mode = 0>(t)",
    ),
}
REFUSED = {
    "spatial": (9, f"{_bn('spatial = 0')} y = Relu(t)", "spatial=0"),
    "is_test against one output": (9, f"{_bn('is_test = 0')} y = Relu(t)", "is_test=0"),
    "is_test against outputs": (9, f"{_bn('is_test = 1', 't, p, q')} y = Relu(t)", "is_test=1"),
    "is_test against training_mode": (
        15,
        f"{_bn('is_test = 1, training_mode = 1', 't, p, q')} y = Relu(t)",
        "is_test=1",
    ),
    "training_mode before its opset": (11, f"{_bn('training_mode = 1')} y = Relu(t)", "_mode=1"),
    "Dropout that trains": (10, f"{_bn('')} y = Dropout<is_test = 0>(t)", "is_test=0"),
    "broadcast along an axis": (
        13,
        f"{_bn('')} y = Add<broadcast = 1, axis = 1>(t, k)",
        "broadcast=1",
    ),
    "later and not its default": (11, f"{_bn('')} y = Reshape<allowzero = 1>(t, shape)", "zero=1"),
    "changed with the operator": (
        10,
        f'{_bn("")} y = Resize<coordinate_transformation_mode = "half_pixel">(t, k)',
        "half_pixel",
    ),
}


def _model(opset: int, body: str) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g {X4} {{ {body} }}'
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onh.from_array(value, name) for name, value in PARAMS.items() if name in used
    )
    return model


def _without(model: onnx.ModelProto) -> onnx.ModelProto:
    """What it means: the same nodes with the attributes that their opset has."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        known = onnx.defs.get_schema(node.op_type, plain.opset_import[0].version).attributes
        kept = [attribute for attribute in node.attribute if attribute.name in known]
        del node.attribute[:]
        node.attribute.extend(kept)
    return plain


@pytest.mark.parametrize("kind", TAKEN)
def test_taken_with_a_note(kind: str) -> None:
    opset, body = TAKEN[kind]
    model = _model(opset, body)
    fused, report = syncbn_convert.fuse_with_report(model, verify=False)
    assert isinstance(fused, onnx.ModelProto)
    notes = [note for note in report.notes if "the same without it: left out" in note]
    assert notes
    assert len(set(notes)) == len(notes)
    expected = run(_without(model), FEEDS)["y"]
    np.testing.assert_allclose(run(fused, FEEDS)["y"], expected, rtol=0, atol=1e-4)
    assert set(notes) <= set(syncbn_convert.inspect(model).notes)


def test_compared_as_what_it_means(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(*TAKEN["is_test and spatial"]), path)
    output, report = syncbn_convert.fuse_file(path, tmp_path / "f.onnx")
    assert output is not None
    assert report.verified
    assert len(set(report.notes)) == len(report.notes)
    verdict = syncbn_convert.verify(path, output)
    assert verdict.equal
    assert any("left out" in note for note in verdict.notes)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_where_it_means_something_else(kind: str) -> None:
    opset, body, value = REFUSED[kind]
    with pytest.raises(ModelFileError, match=f"{value} is not what it means without; export"):
        syncbn_convert.inspect(_model(opset, body))


def test_a_model_in_memory_is_read_alike() -> None:
    model = ir.from_proto(_model(*TAKEN["spatial"]))
    _, report = syncbn_convert.fuse_with_report(model, verify=False)
    assert any("attribute spatial=1 of node 'bn'" in note for note in report.notes)
    opset, body, _ = REFUSED["spatial"]
    with pytest.raises(ConversionError, match="spatial=0 is not what it means"):
        syncbn_convert.fuse(ir.from_proto(_model(opset, body)))


def test_many_nodes_are_told_once() -> None:
    body = "\n".join(
        f"[n{i}] t{i + 1} = BatchNormalization<spatial = 1>(t{i}, s, b, m, v)" for i in range(5)
    )
    model = _model(9, f"t0 = Conv(x, w) {body} y = Relu(t5)")
    (note,) = syncbn_convert.inspect(model).notes
    assert "of 5 BatchNormalization nodes, the first 'n0'" in note


def test_an_attribute_of_no_opset_is_invalid() -> None:
    with pytest.raises(ModelFileError, match="Unrecognized attribute: wrong"):
        syncbn_convert.inspect(_model(11, f"{_bn('wrong = 0')} y = Relu(t)"))
