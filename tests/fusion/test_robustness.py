"""What once broke a file or ended in a traceback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import syncbn_convert
from syncbn_convert.files import model_file
from syncbn_convert.form.opset import raise_opset
from syncbn_convert.passes import FuseBatchNorm
from syncbn_convert.reports import Record
from tests.fusion.cases import BN, X2, X4, Array, W, build, norm, random
from tests.fusion.judge import batchnorms, require_same

MATRIX = {"k": random(4, 4)}


def fused(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Record]]:
    """Fuse a model, judge it, and see that a second run changes nothing."""
    subject = model_file.as_model(model)
    result = FuseBatchNorm()(subject)
    proto = model_file.to_proto(subject)
    onnx.checker.check_model(proto, full_check=True)
    require_same(model, proto)
    assert not FuseBatchNorm()(subject).modified
    return proto, result.records  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body",
    [
        f"t = {BN}(x, s, b, m, v) u = MatMul(t, k) y = {BN}(u, ps, pb, pm, pv)",
        f"t = {BN}(x, s, b, m, v) u = MatMul(t, k) r = Identity(u) y = {BN}(r, ps, pb, pm, pv)",
        f"a = MatMul(x, k) u = {BN}(a, s, b, m, v) q = MatMul(u, k) r = Relu(q) "
        f"t = {BN}(r, s, b, m, v) z = MatMul(t, k) y = {BN}(z, ps, pb, pm, pv)",
    ],
)
def test_names_are_unique(body: str) -> None:
    model = build(X2, body, {**MATRIX, **norm(4), **norm(4, "p", seed=1)})
    for number, node in enumerate(model.graph.node):
        node.name = "dense" if node.op_type == "MatMul" and number < 2 else f"n{number}"
    proto, _ = fused(model)
    names = Counter(node.name for node in proto.graph.node)
    assert max(names.values()) == 1, names
    assert not batchnorms(proto)
    assert len(names) <= len(model.graph.node)


def test_a_name_that_is_taken_already() -> None:
    body = f"u = MatMul(x, k) t = {BN}(u, s, b, m, v) y = Relu(t)"
    model = build(X2, body, {**MATRIX, **norm(4)})
    for node, name in zip(model.graph.node, ("dense", "bn", "dense/add"), strict=True):
        node.name = name
    proto, _ = fused(model)
    assert sorted(node.name for node in proto.graph.node) == ["dense", "dense/add", "dense/add_1"]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
@pytest.mark.parametrize("operator", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("producer", ["MatMul", "Gemm"])
@pytest.mark.parametrize("after", [True, False])
def test_whole_numbers_are_left_alone(
    dtype: Any, operator: str, producer: str, after: bool
) -> None:
    kind = np.dtype(dtype).name
    x, y = ("t", "y") if after else ("x", "t")
    made = f"{'t' if after else 'y'} = {producer}({'x' if after else 't'}, w) "
    changed = f"{y} = {operator}({x}, k) "
    weight = np.arange(24).reshape(4, 6).astype(dtype)
    constant = np.full(6 if after else 4, 3, dtype)
    model = build(
        f"({kind}[2,4] x) => ({kind}[a,c] y)",
        made + changed if after else changed + made,
        {"w": weight, "k": constant},
    )
    subject = model_file.as_model(model)
    assert not FuseBatchNorm()(subject).modified


@pytest.mark.parametrize(
    ("body", "weight", "reason"),
    [
        ("t = ConvTranspose<group=3>(x, w)", random(4, 2, 3, 3), "divided into 3 groups"),
        ("t = ConvTranspose<group=8>(x, w)", random(4, 6, 3, 3), "divided into 8 groups"),
        ("t = ConvTranspose<group=0>(x, w)", random(4, 6, 3, 3), "divided into 0 groups"),
        ("t = Conv<group=4>(x, w)", random(6, 1, 3, 3), "divided into 4 groups"),
        ("t = Conv<group=0>(x, w)", random(6, 4, 3, 3), "divided into 0 groups"),
    ],
)
def test_groups_that_do_not_divide_the_channels(body: str, weight: Array, reason: str) -> None:
    _left_alone(f"{body} y = {BN}(t, s, b, m, v)", {"w": weight}, 6, reason)


def test_groups_of_a_reader_that_do_not_divide_its_channels() -> None:
    body = f"t = {BN}(x, s, b, m, v) y = Conv<group=4>(t, w)"
    _left_alone(body, {"w": random(6, 1, 3, 3)}, 4, "divided into 4 groups")


@pytest.mark.parametrize("shape", [(5,), (1, 6), (3, 2)])
def test_a_bias_of_another_shape(shape: tuple[int, ...]) -> None:
    body = f"t = Conv(x, w, k) y = {BN}(t, s, b, m, v)"
    _left_alone(body, {**W, "k": random(*shape)}, 6, "its bias has shape")


def _left_alone(body: str, params: dict[str, Array], channels: int, reason: str) -> None:
    model = build(X4, body, {**params, **norm(channels)})
    subject = model_file.as_model(model)
    result = FuseBatchNorm()(subject)
    (record,) = result.records  # type: ignore[attr-defined]
    assert record.action == "kept"
    assert reason in record.reason
    assert not result.modified


def _fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    result = syncbn_convert.fuse(model, verify=False)
    assert isinstance(result, onnx.ModelProto)
    return result


def _convert(model: onnx.ModelProto) -> onnx.ModelProto:
    result = syncbn_convert.convert(model, verify=False)
    assert isinstance(result, onnx.ModelProto)
    return result


@pytest.mark.parametrize("command", [_fuse, _convert])
@pytest.mark.parametrize("values", [["t"], ["y2"], ["t", "y2"]])
def test_element_types_that_are_undefined(
    values: list[str], command: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    body = f"t = Conv(x, w) y2 = {BN}(t, s, b, m, v) y = Relu(y2)"
    model = build(X4, body, {**W, **norm(6)})
    undefined = onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=0))
    for name in values:
        model.graph.value_info.append(onnx.ValueInfoProto(name=name, type=undefined))
    assert syncbn_convert.inspect(model).nodes
    result = command(model)
    del model.graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    assert all(info.type.tensor_type.elem_type for info in result.graph.value_info)
    if command is _fuse:
        require_same(model, result)


def test_a_layer_that_normalizes_each_activation_takes_no_map() -> None:
    parameters = {key: np.stack([value] * 3, 1) for key, value in norm(4).items()}
    body = f"t = {BN}<spatial=0>(x, s, b, m, v) y = Mul(t, k)"
    interface = "(float[2,4,3] x) => (float[a,c,l] y)"
    model = build(interface, body, {**parameters, "k": np.array(2, np.float32)}, opset=8)
    assert not FuseBatchNorm()(model_file.as_model(model)).modified


@pytest.mark.parametrize(
    ("body", "channels"),
    [
        (f"t = MatMul(x, w) y = {BN}<is_test=1>(t, s, b, m, v)", 6),
        (f"t = {BN}<is_test=1>(x, s, b, m, v) y = MatMul(t, w)", 4),
    ],
)
def test_a_sum_before_opset_7_says_that_it_broadcasts(body: str, channels: int) -> None:
    parameters = {"w": random(4, 6), **norm(channels)}
    model = build(X2, body, parameters, opset=6, ir_version=3)
    subject = model_file.as_model(model)
    assert FuseBatchNorm()(subject).modified
    raise_opset(subject, 7)
    proto = model_file.to_proto(subject)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Add"]
    for node in model.graph.node:
        if node.op_type == BN:
            del node.attribute[:]
    model.opset_import[0].version = 7
    require_same(model, proto)
