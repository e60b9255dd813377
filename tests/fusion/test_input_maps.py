"""Affine maps by constants before a Conv: the normalization of inputs that pipelines begin with."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

from syncbn_convert.files import model_file
from syncbn_convert.passes import FuseBatchNorm
from tests.fusion.cases import BN, X2, X4, Array, build, norm, random
from tests.fusion.test_robustness import fused

MAPS = {"Add", "Div", "Mul", "Sub"}
CONV = "y = Conv(t, w)"
CHANNELS = random(4, 1, 1) + np.float32(3)
PARAMS: dict[str, Array] = {
    "w": random(6, 4, 3, 3),
    "mean": random(1, 4, 1, 1),
    "std": np.abs(CHANNELS),
    "k": np.array(0.7, np.float32),
    "one": random(1, 1, 1, 1),
    "c": random(6),
    "ones": random(1, 1, 7, 7),
    "wide": random(7),
}

FUSED = {
    "(x - mean) / std": f"u = Sub(x, mean) t = Div(u, std) {CONV}",
    "x / 255 before it": f"i = Mul(x, k) u = Sub(i, mean) t = Div(u, std) {CONV}",
    "scalars": f"u = Sub(x, k) t = Mul(u, one) {CONV}",
    "constant minus": f"t = Sub(mean, x) {CONV}",
    "shift": f"t = Add(x, mean) {CONV}",
    "scale": f"t = Mul(std, x) {CONV}",
    "with a bias": "u = Sub(x, mean) t = Div(u, std) y = Conv(t, w, c)",
    "through Identity": "u = Sub(x, mean) i = Identity(u) t = Div(i, std) r = Identity(t) "
    "y = Conv(r, w)",
    "before a normalization": f"u = Sub(x, mean) t = {BN}(u, s, b, m, v) {CONV}",
    "padding, scale alone": "t = Div(x, std) y = Conv<pads=[1,1,1,1]>(t, w)",
    "shape is read": "u = Sub(x, mean) t = Div(u, std) y = Conv(t, w) q = Shape(t)",
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str) -> None:
    proto, records = fused(build(X4, FUSED[name], {**PARAMS, **norm(4)}))
    left = {node.op_type for node in proto.graph.node}
    assert left <= {"Conv", "Shape"}
    assert [record.action for record in records if record.action != "fused"] == []
    assert records


LEFT = {
    "padding": ("u = Sub(x, mean) t = Div(u, std) y = Conv<pads=[1,1,1,1]>(t, w)", {"Sub"}),
    "padding, shift last": (
        "u = Div(x, std) t = Sub(u, mean) y = Conv<pads=[0,0,1,0]>(t, w)",
        {"Div", "Sub"},
    ),
    "padding by name": ('t = Add(x, mean) y = Conv<auto_pad="SAME_UPPER">(t, w)', {"Add"}),
    "constant over": (f"t = Div(std, x) {CONV}", {"Div"}),
    "full planes": (f"t = Add(x, ones) {CONV}", {"Add"}),
    "along the width": (f"t = Mul(x, wide) {CONV}", {"Mul"}),
    "read twice": (f"t = Sub(x, mean) {CONV} z = Relu(t)", {"Sub"}),
    "relu between": (f"u = Sub(x, mean) t = Relu(u) {CONV}", {"Sub"}),
}


@pytest.mark.parametrize("name", LEFT)
def test_left(name: str) -> None:
    body, left = LEFT[name]
    proto, _ = fused(build(X4, body, PARAMS))
    assert {node.op_type for node in proto.graph.node} & MAPS == left


@pytest.mark.parametrize("operator", ["Mul", "Sub"])
def test_one_channel_that_is_broadcast_to_four(operator: str) -> None:
    interface = "(float[2,1,7,7] x) => (float[a,c,h,w_] y)"
    proto, _ = fused(build(interface, f"t = {operator}(x, mean) {CONV}", PARAMS))
    assert [node.op_type for node in proto.graph.node] == [operator, "Conv"]


def test_channels_that_are_not_known() -> None:
    interface = "(float[n,c,7,7] x) => (float[a,e,h,w_] y)"
    model = build(interface, f"t = Sub(x, mean) {CONV}", PARAMS)
    assert not FuseBatchNorm()(model_file.as_model(model)).modified


def test_groups() -> None:
    params = {**PARAMS, "w": random(8, 2, 3, 3)}
    body = "u = Sub(x, mean) t = Div(u, std) y = Conv<group=2>(t, w)"
    proto, _ = fused(build(X4, body, params))
    assert [node.op_type for node in proto.graph.node] == ["Conv"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("u = Sub(x, j) t = Div(u, j) y = Gemm(t, w)", ["Gemm"]),
        ("t = Mul(x, j) y = MatMul(t, w)", ["MatMul"]),
        ("u = Sub(x, j) t = Div(u, j) y = MatMul(t, w)", ["Add", "MatMul"]),
        ("t = Add(x, j) y = MatMul(t, w)", ["Add", "MatMul"]),
        ("t = MatMul(x, w) u = Add(t, c) y = Add(u, c)", ["Add", "MatMul"]),
        ("u = Sub(x, j) t = Div(u, j) v = MatMul(t, w) y = Sub(v, c)", ["Add", "MatMul"]),
    ],
)
def test_before_matrices(body: str, expected: list[str]) -> None:
    params: dict[str, Any] = {"w": random(4, 6), "j": random(4) + np.float32(3), "c": random(6)}
    proto, _ = fused(build(X2, body, params))
    assert sorted(Counter(node.op_type for node in proto.graph.node).elements()) == expected


def test_the_result_is_that_of_float64() -> None:
    """Rounded once: both maps go into the weights together."""
    body = f"i = Mul(x, k) u = Sub(i, mean) t = Div(u, std) {CONV}"
    proto, _ = fused(build(X4, body, PARAMS))
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    wide = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    std = wide["std"].reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(kept["w"], (wide["w"] * (wide["k"] / std)).astype(np.float32))
    bias = np.einsum("ocij,c->o", wide["w"], -(wide["mean"] / std).reshape(4))
    half_a_unit = 0.5 * np.spacing(np.float32(np.abs(bias).max()))
    roundings = 64 * np.finfo(np.float64).eps * np.abs(bias).max()
    np.testing.assert_allclose(kept["Conv(y)/bias"], bias, rtol=0, atol=half_a_unit + roundings)
