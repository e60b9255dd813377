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
        ("OneHot", [ints([1]), ints(3), np.array([0.0, 1.0])], {}, "depends on a trained"),
        ("Range", [np.array(0.0), np.array(3.0), np.array(1.0)], {}, "depends on a trained"),
        ("Pad", [np.ones(3), ints([1, 1]), np.array(0.5)], {}, "value it pads with"),
        ("Einsum", [np.ones((2, 2))], {"equation": "ii->i"}, "a letter twice"),
        ("Einsum", [np.ones((2, 2))], {"equation": "...i->i"}, "an ellipsis"),
        (
            "ScatterElements",
            [np.ones(3), ints([1]), np.ones(1)],
            {"reduction": "mul"},
            "its reduction is mul",
        ),
        (
            "NegativeLogLikelihoodLoss",
            [np.ones((1, 2)), ints([0]), np.ones(2)],
            {},
            "weights depend on a parameter",
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
