from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.files.model_file import as_model, to_proto
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.passes import CanonicalizeBatchNorm
from tests import oracle
from tests.harness import apply_and_check, run, spelling
from tests.models import batchnorm_model, float32, make_layer

LAYER = oracle.Layer(
    float32(1.0, 2.0, 0.5),
    float32(0.0, 1.0, -1.0),
    float32(0.5, -0.5, 2.0),
    float32(1.0, 4.0, 0.25),
)
EPS = 16 * float(np.finfo(np.float32).eps)


def canonical(name: str) -> onnx.ModelProto:
    subject = as_model(spelling(name))
    CanonicalizeBatchNorm()(subject)
    return to_proto(subject)


def random_x(shape: list[int]) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_opset_1_in_test_mode() -> None:
    layer = oracle.Layer(LAYER.scale, LAYER.bias, LAYER.mean, LAYER.var, epsilon=1e-3)
    rewritten, result = apply_and_check(
        CanonicalizeBatchNorm(),
        spelling("opset1_test"),
        feeds={"x": random_x([2, 3, 4])},
        expected=lambda feeds: {"y": oracle.infer(layer, feeds["x"])},
        removed_inputs=("s", "b", "m", "v"),
        rtol=EPS,
    )
    (node,) = rewritten.graph.node
    assert {a.name for a in node.attribute} == {"epsilon"}
    assert result.notes == ["opset raised from 1 to 15"]


def test_opset_6_in_training_mode() -> None:
    layer = oracle.Layer(LAYER.scale, LAYER.bias, LAYER.mean, LAYER.var, momentum=0.8)
    rewritten, _ = apply_and_check(
        CanonicalizeBatchNorm(),
        spelling("opset6_training"),
        feeds={"x": random_x([2, 3, 4])},
        expected=lambda feeds: {"y": np.maximum(oracle.train(layer, [feeds["x"]]).outputs[0], 0)},
        removed_inputs=("s", "b", "m", "v"),
        rtol=EPS,
    )
    node = rewritten.graph.node[0]
    assert list(node.output) == ["h", "running_mean", "running_var"]
    assert {a.name: a.i for a in node.attribute if a.name == "training_mode"} == {
        "training_mode": 1
    }


@pytest.mark.parametrize("name", ["opset7_spatial", "constant_parameters", "float64"])
def test_meaning_is_kept(name: str) -> None:
    model = spelling(name)
    x = random_x([2, 3, 2, 2, 2]) if name == "constant_parameters" else random_x([4, 3, 4])
    if name == "float64":
        x = np.random.default_rng(0).normal(size=(5, 2))
    apply_and_check(CanonicalizeBatchNorm(), model, feeds={"x": x}, rtol=EPS)


def test_constant_results_become_initializers_of_the_same_name() -> None:
    model = canonical("constant_parameters")
    (node,) = model.graph.node
    assert list(node.input) == ["x", "s", "b", "m", "v"]
    values = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in model.graph.initializer}
    assert values["s"] == [2.0] * 3
    assert values["b"] == [0.25, 0.5, 0.75]
    assert values["m"] == [0.5, -0.5, 2.0]
    assert values["v"] == [1.0, 4.0, 0.25]


def test_per_activation_normalization_is_spelled_out_and_said() -> None:
    x = random_x([3, 2, 2])
    rewritten, result = apply_and_check(
        CanonicalizeBatchNorm(), spelling("opset7_per_activation"), feeds={"x": x}, rtol=EPS
    )
    assert [n.name for n in rewritten.graph.node][-2:] == ["odd", "norm"]
    assert [n.op_type for n in rewritten.graph.node][-2:] == ["Add", "BatchNormalization"]
    assert [(r.node, r.action) for r in result.records] == [("odd", "skipped")]
    assert "spatial=0" in result.records[0].reason


def test_functions_are_inlined_once_per_call() -> None:
    rewritten, result = apply_and_check(
        CanonicalizeBatchNorm(), spelling("in_function"), feeds={"x": random_x([4, 2, 5])}
    )
    names = [n.input[3] for n in rewritten.graph.node if n.op_type == "BatchNormalization"]
    assert names == ["m", "m2"]
    assert not rewritten.functions
    assert result.notes == [
        "model-local functions with BatchNormalization were inlined: local::Block"
    ]


def test_bodies_survive_a_raised_opset() -> None:
    model = spelling("in_if_body")
    model.opset_import[0].version = 14
    x = random_x([4, 2, 5])
    for choice in (True, False):
        feeds = {"x": x, "choice": np.array(choice)}
        rewritten, _ = apply_and_check(CanonicalizeBatchNorm(), model, feeds=feeds)
        assert np.array_equal(run(rewritten, feeds)["y"], run(model, feeds)["y"])


def test_the_opset_rises_only_as_far_as_needed() -> None:
    model = batchnorm_model(make_layer(2), ["n", 2], opset=18)
    subject = as_model(model)
    CanonicalizeBatchNorm()(subject)
    assert subject.opset_imports[""] == 18
    CanonicalizeBatchNorm(opset=20)(subject)
    assert subject.opset_imports[""] == 20
    with pytest.raises(ConversionError, match="opset 20, which cannot be lowered to 19"):
        CanonicalizeBatchNorm(opset=19)(subject)


def test_used_saved_statistics_stop_the_rise() -> None:
    model = spelling("opset9_five_outputs")
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("saved_var", onnx.TensorProto.FLOAT, [2])
    )
    with pytest.raises(ConversionError, match="node 'norm' has its saved statistic 'saved_var'"):
        CanonicalizeBatchNorm()(as_model(model))


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "training"),
    [
        (1, 1, {"is_test": 1}, False),
        (1, 5, {}, True),
        (6, 1, {}, True),
        (6, 1, {"is_test": 1}, False),
        (7, 1, {}, False),
        (7, 5, {}, True),
        (9, 3, {}, True),
        (13, 1, {"training_mode": 1}, False),
        (14, 3, {}, False),
        (14, 1, {"training_mode": 1}, True),
        (15, 3, {"training_mode": 1}, True),
        (15, 1, {"training_mode": 0}, False),
    ],
)
def test_training_mode_of_every_opset(
    opset: int, outputs: int, attributes: dict[str, int], training: bool
) -> None:
    import onnx_ir as ir

    node = ir.node("BatchNormalization", [], attributes, num_outputs=outputs)
    for index, output in enumerate(node.outputs):
        output.name = f"output_{index}"
    assert BatchNorm(node, opset).training_mode == training


def test_documentation_and_metadata_survive_the_rise() -> None:
    model = spelling("opset9_five_outputs")
    model.graph.doc_string = "the graph"
    model.graph.node[1].doc_string = "a convolution"
    model.graph.input[0].doc_string = "pixels"
    subject = as_model(model)
    CanonicalizeBatchNorm()(subject)
    risen = to_proto(subject)
    assert risen.graph.doc_string == "the graph"
    assert next(n for n in risen.graph.node if n.name == "conv").doc_string == "a convolution"
    assert risen.graph.input[0].doc_string == "pixels"
