"""Operators that let no gradient through, and samples that rules refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.passes import Differentiate
from syncbn_convert.passes.gradients import GradientTape, registered, rule_for
from syncbn_convert.passes.gradients.nondifferentiable import no_gradient
from tests.gradients.judge import Layout, write
from tests.gradients.sample import Array, Sample, ints
from tests.harness import apply_and_check

_FLAT = [op_type for _, op_type, rule in registered() if rule is no_gradient]


@pytest.mark.parametrize("op_type", _FLAT)
def test_flat_operator_gives_every_input_none(op_type: str) -> None:
    node = ir.node(op_type, [ir.Value(name="a"), ir.Value(name="b")])
    tape = GradientTape(ir.Model(ir.Graph([], [], nodes=[node]), ir_version=10), set())
    rule = rule_for(node)
    assert rule is not None
    assert list(rule(tape, node, [ir.Value(name="dy")])) == [None, None]
    assert tape.nodes == []


def test_pass_goes_around_flat_operators() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        masked (float[2, 3] x) => (float loss)
        <float[3] w = {1, -2, 3}, float zero = {0}> {
            product = Mul(x, w)
            positive = Greater(product, zero)
            mask = Cast<to = 1>(positive)
            kept = Mul(product, mask)
            loss = ReduceSum<keepdims = 0>(kept)
        }""")
    x = np.array([[1, 2, 3], [-4, -5, 6]], np.float32)
    mask = (x * [1, -2, 3]) > 0
    apply_and_check(
        Differentiate(loss="loss", frozen=("zero",)),
        model,
        feeds={"x": x},
        expected=lambda feeds: {"w.grad": (feeds["x"] * mask).sum(0)},
        added_inputs=["w"],
        added_outputs=["w.grad"],
    )


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "message"),
    [
        ("Einsum", [np.ones((2, 2))], {"equation": "ii->i"}, "a letter twice"),
        ("Einsum", [np.ones((2, 2))], {"equation": "...i->i"}, "an ellipsis"),
        (
            "ScatterElements",
            [np.ones(3), ints([1]), np.ones(1)],
            {"reduction": "mul"},
            "its reduction is mul",
        ),
        (
            "Resize",
            [np.ones((2, 2)), np.array([0, 0, 1, 1], np.float32), None, ints([3, 3])],
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
            "crops",
        ),
        (
            "Resize",
            [np.ones((2, 2)), None, None, ints([3, 3])],
            {"keep_aspect_ratio_policy": "not_larger"},
            "keep_aspect_ratio_policy is not_larger",
        ),
    ],
)
def test_what_has_no_gradient_is_refused(
    op_type: str, inputs: list[Array | None], attributes: dict[str, Any], message: str
) -> None:
    sample = Sample(op_type=op_type, inputs=inputs, attributes=attributes, oracle=None)
    with pytest.raises(ConversionError, match=message) as caught:
        write(sample, Layout(opset=18), np.dtype(np.float64))
    assert op_type in str(caught.value)
    assert "\n" not in str(caught.value)


def test_initializers_that_configure_an_operator_are_not_trained() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        configured (int64[2] labels) => (float loss)
        <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float fill = {0.5}, float[2] values = {0, 1},
         float[4] weights = {1, 2, 3, 4}, int64[4] pads = {0, 0, 0, 1}, int64 classes = {4}> {
            padded = Pad(w, pads, fill)
            hot = OneHot(labels, classes, values)
            scores = Mul(padded, hot)
            loss = SoftmaxCrossEntropyLoss(scores, labels, weights)
        }""")
    _, result = apply_and_check(
        Differentiate(loss="loss"), model, added_inputs=["w"], added_outputs=["w.grad"]
    )
    trained = [record.node for record in result.records if record.action == "differentiated"]
    assert trained == ["w"]


@pytest.mark.parametrize(
    ("trainable", "expected"), [(None, ["w"]), (("^w$", "^six$"), ["w", "six"])]
)
def test_scalars_are_trained_only_if_they_are_named(
    trainable: tuple[str, ...] | None, expected: list[str]
) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        relu6 (float[2, 3] x) => (float loss)
        <float[3] w = {1, 2, 3}, float zero = {0}, float six = {6}> {
            product = Mul(x, w)
            cut = Clip(product, zero, six)
            loss = ReduceSum<keepdims = 0>(cut)
        }""")
    _, result = apply_and_check(
        Differentiate(loss="loss", trainable=trainable),
        model,
        feeds={"x": np.array([[1, 2, 3], [-4, 1, 1]], np.float32)},
        expected=lambda _: {"w.grad": np.array([1, 3, 1], np.float32)},
        added_inputs=expected,
        added_outputs=[f"{name}.grad" for name in expected],
    )
    trained = [record.node for record in result.records if record.action == "differentiated"]
    assert trained == expected


@pytest.mark.parametrize(
    "body",
    [
        "fill = Squeeze(p) y = Pad(w, pads, fill) loss = ReduceSum<keepdims = 0>(y)",
        "on = Concat<axis = 0>(p, p) y = OneHot(i, n, on) loss = ReduceSum<keepdims = 0>(y)",
        "start = Squeeze(p) y = Range(start, limit, step) loss = ReduceSum<keepdims = 0>(y)",
        "weights = Concat<axis = 0>(p, p, p) loss = SoftmaxCrossEntropyLoss(w, i, weights)",
    ],
    ids=["Pad", "OneHot", "Range", "SoftmaxCrossEntropyLoss"],
)
def test_configuration_that_is_computed_from_parameters_is_refused(body: str) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        computed (int64[2] i) => (float loss)
        <float[1] p = {{0.5}}, float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, int64 n = {{3}},
         int64[4] pads = {{0, 0, 0, 1}}, float limit = {{3}}, float step = {{1}}> {{ {body} }}""")
    with pytest.raises(ConversionError, match="depends on a trained parameter"):
        Differentiate(loss="loss")(ir.from_proto(model))
