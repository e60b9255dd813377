"""A rise of models: what stands behind a BatchNormalization, in a branch, and beside the nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.form.opset import raise_opset
from tests import oracle
from tests.models import make_layer
from tests.opsets.samples import floats
from tests.opsets.test_rises import check, risen, run

LAYER = make_layer(3)
CHANNELS = floats(3)


def old_model(text: str, opset: int) -> onnx.ModelProto:
    """A model whose first node is a BatchNormalization of x [N, 3, 4, 3] in test mode."""
    mode = ", is_test = 1" if opset < 7 else ""
    consumed = ", consumed_inputs = [0, 0, 0, 1, 1]" if opset < 6 else ""
    model = onnx.parser.parse_model(
        f"""<ir_version: 3, opset_import: ["" : {opset}]>
        g (float[N, 3, 4, 3] x, float[3] s, float[3] b, float[3] m, float[3] v, float[3] c)
          => (float y)
        <float[3] s, float[3] b, float[3] m, float[3] v, float[3] c> {{
          [norm] h = BatchNormalization <epsilon: float = 0.001{mode}{consumed}> (x, s, b, m, v)
          {text}
        }}"""
    )
    del model.graph.initializer[:]
    values = (LAYER.scale, LAYER.bias, LAYER.mean, LAYER.var, CHANNELS)
    for name, value in zip("sbmvc", values, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def at_channels(function: Any) -> Any:
    return lambda h: function(h, CHANNELS.reshape(3, 1, 1))


@pytest.mark.parametrize("opset", [1, 3, 5, 6])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = Mul <axis = 1, broadcast = 1> (h, c)", at_channels(np.multiply)),
        ("y = Sub <axis = 1, broadcast = 1> (h, c)", at_channels(np.subtract)),
        ("y = Div <broadcast = 1> (h, c)", lambda h: h / CHANNELS),
        (
            "p = Relu (h) q = Add <axis = 1, broadcast = 1> (p, c) y = Tanh (q)",
            at_channels(lambda h, c: np.tanh(np.maximum(h, 0) + c)),
        ),
        ("y = PRelu (h, c)", at_channels(lambda h, c: np.where(h < 0, h * c, h))),
        ("d = Dropout <is_test = 1> (h) y = Softmax (d)", None),
    ],
)
def test_operators_behind_a_normalization(opset: int, text: str, expected: Any) -> None:
    x = floats(2, 3, 4, 3)
    h = oracle.infer(LAYER, x)
    if expected is None:
        rows = np.exp(h.reshape(2, -1) - h.reshape(2, -1).max(axis=1, keepdims=True))
        wanted = (rows / rows.sum(axis=1, keepdims=True)).reshape(h.shape)
    else:
        wanted = expected(h)
    check(run(risen(old_model(text, opset), 15), {"x": x}), [wanted.astype(np.float32)])


@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [1.5, 2.0, 3.5])
def test_enlarged_behind_a_normalization(opset: int, mode: str, scale: float) -> None:
    if opset < 9:
        text = f'y = Upsample <mode = "{mode}", scales = [1.0, 1.0, {scale}, 2.0]> (h)'
    else:
        text = (
            f"k = Constant <value = float[4] {{1.0, 1.0, {scale}, 2.0}}> () "
            f'y = Upsample <mode = "{mode}"> (h, k)'
        )
    model, feeds = old_model(text, opset), {"x": floats(2, 3, 4, 3)}
    wanted = run(model, feeds)
    for target in (10, 11, 15, 18, 21):
        check(run(risen(model, target), feeds), wanted)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_nodes_of_both_branches_rise(operator: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 6, opset_import: ["" : 11]>
        g (float[2, 3, 4] x, bool c) => (float[2, 3, 4] y) {{
          y = If (c) <
            then_branch = t () => (float[2, 3, 4] p) {{ p = {operator} <axis = 1> (x) }},
            else_branch = e () => (float[2, 3, 4] q) {{ q = {operator} <axis = -3> (x) }}
          >
        }}"""
    )
    for choice in (True, False):
        feeds = {"x": floats(2, 3, 4), "c": np.array(choice)}
        check(run(risen(model, 15), feeds), run(model, feeds))


@pytest.mark.parametrize(("old", "new"), [(7, 15), (13, 15), (9, 21), (6, 18)])
def test_what_stands_beside_the_nodes_stays(old: int, new: int) -> None:
    model = old_model("r = Relu (h) f = Flatten (r) y = Softmax (f)", old)
    model.ir_version = 11  # the first with devices
    graph = model.graph
    infos = (graph.input[0], graph.output[0], graph.value_info.add(name="r"))
    infos[2].type.CopyFrom(graph.input[0].type)
    for info in infos:
        info.doc_string = f"doc of {info.name}"
        info.metadata_props.add(key="unit", value=info.name)
        entry = graph.quantization_annotation.add(tensor_name=info.name)
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    for node in graph.node:
        node.metadata_props.add(key="made by", value="hand")
        node.device_configurations.add(configuration_id="two", pipeline_stage=1)
    result = risen(model, new)
    assert [(i.name, i.doc_string, i.metadata_props) for i in result.graph.input[:1]] == [
        ("x", "doc of x", infos[0].metadata_props)
    ]
    assert result.graph.output[0].metadata_props == infos[1].metadata_props
    found = {info.name: info for info in result.graph.value_info}
    assert found["r"].metadata_props == infos[2].metadata_props
    notes = [
        {entry.tensor_name: entry for entry in holder.quantization_annotation}
        for holder in (graph, result.graph)
    ]
    assert notes[0] == notes[1]
    nodes = {node.output[0]: node for node in result.graph.node}
    for node in graph.node:
        assert nodes[node.output[0]].metadata_props == node.metadata_props
        assert nodes[node.output[0]].device_configurations == node.device_configurations


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t = Tile (h, n, a)", r"node 'Tile\(t\)' \(Tile\) cannot be raised from opset 5 to 6"),
        ("t = GRU <output_sequence = 1> (h, h, h)", "does not have its attribute 'output_seq"),
        ("t = Mul <axis = 1, broadcast = 1> (z, c)", "shape of its input 'z' is not known; run"),
    ],
)
def test_what_cannot_rise_is_named_with_cause_and_cure(text: str, said: str) -> None:
    model = old_model(f"z = Unknown.Op (h) n = Shape (h) a = Shape (h) {text} y = Relu (t)", 5)
    model.opset_import.add(domain="Unknown", version=1)
    with pytest.raises(ConversionError, match=said) as caught:
        raise_opset(ir.from_proto(model), 15)
    assert "version_converter" not in str(caught.value)
    assert ";" in str(caught.value)


def test_an_opset_that_onnx_does_not_know_is_refused() -> None:
    with pytest.raises(ConversionError, match="opset 99 is newer than"):
        raise_opset(ir.from_proto(old_model("y = Relu (h)", 7)), 99)
