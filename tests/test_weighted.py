"""The table of operators with weights against what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from syncbn_convert.graph.weighted import OPERATORS

Array = npt.NDArray[np.float32]

CASES: list[tuple[str, list[int], list[int], dict[str, int]]] = [
    ("Conv", [1, 4, 5], [3, 4, 2], {}),
    ("Conv", [1, 4, 5, 5], [6, 2, 3, 3], {"group": 2}),
    ("ConvTranspose", [1, 4, 5, 5], [4, 3, 2, 2], {}),
    ("ConvTranspose", [1, 4, 5, 5], [4, 3, 2, 2], {"group": 2}),
    ("Gemm", [2, 4], [4, 3], {}),
    ("Gemm", [2, 4], [3, 4], {"transB": 1}),
    ("MatMul", [2, 4], [4, 3], {}),
    ("MatMul", [2, 5, 4], [2, 4, 3], {}),
]


def floats(*names: str) -> list[ir.Value]:
    return [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names]


def zeroed(array: Array, axis: int, indices: list[int]) -> Array:
    """Return an array without what it has at some indices of an axis."""
    changed = array.copy()
    np.moveaxis(changed, axis, 0)[indices] = 0
    return changed


def every(width: int, groups: int) -> list[int]:
    """Return the second channel of each group."""
    return [1 + group * width for group in range(groups)]


def test_every_operator_has_a_case() -> None:
    assert {op_type for op_type, *_ in CASES} == set(OPERATORS)


@pytest.mark.parametrize(("op_type", "x_shape", "shape", "attributes"), CASES)
def test_axes_are_those_of_the_channels(
    op_type: str, x_shape: list[int], shape: list[int], attributes: dict[str, int]
) -> None:
    operator, inputs, outputs = OPERATORS[op_type], floats("x", "w"), floats("y")
    node = ir.node(op_type, inputs, attributes, outputs=outputs)
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports={"": 18}, name="graph")
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    session = onnxruntime.InferenceSession(proto.SerializeToString())

    def run(x: Array, w: Array) -> Any:
        return session.run(None, {"x": x, "w": w})[0]

    draw = np.random.default_rng(0)
    x, w = (draw.uniform(1, 2, sizes).astype(np.float32) for sizes in (x_shape, shape))
    y = run(x, w)
    channels = operator.channels_at(y.ndim)
    assert y.shape[channels] == operator.output_channels(node, shape)

    groups = attributes.get("group", 1)
    axis = operator.output_axis(node, len(shape))
    made = every(shape[axis], groups if axis == operator.per_group else 1)
    np.testing.assert_array_equal(run(x, zeroed(w, axis, [1])), zeroed(y, channels, made))

    axis = operator.input_axis(node, len(shape))
    read = every(shape[axis], groups if axis == operator.per_group else 1)
    without = zeroed(x, operator.channels_at(x.ndim), read)
    np.testing.assert_array_equal(run(x, zeroed(w, axis, [1])), run(without, w))


@pytest.mark.parametrize("op_type", sorted(OPERATORS))
def test_bias_is_the_third_input_of_all_but_matmul(op_type: str) -> None:
    operator, inputs = OPERATORS[op_type], floats("x", "w", "b")
    expected = None if op_type == "MatMul" else inputs[2]
    assert operator.bias_of(ir.node(op_type, inputs)) is expected
    assert operator.bias_of(ir.node(op_type, inputs[:2])) is None
