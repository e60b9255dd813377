"""What keeps a normalization from its weights, or does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import helper

from tests.random_graphs.layers import affine, batchnorm, conv, matmul, place
from tests.random_graphs.sketch import Scope, Shape, Value, sliced
from tests.random_graphs.steps import spatial, step


@step(3)
def activation(scope: Scope, x: Value) -> Value:
    op_type = scope.draw.one_of("Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Neg")
    if op_type == "LeakyRelu":
        return scope.add(op_type, [x], x.shape, alpha=0.25)
    if op_type != "Clip":
        return scope.add(op_type, [x], x.shape)
    if scope.opset < 11:
        return scope.add(op_type, [x], x.shape, min=-1.0, max=2.0)
    low, high = (scope.constant(np.array(bound)) for bound in (-1.0, 2.0))
    return scope.add(op_type, [x, low, high], x.shape)


@step(2)
def pool(scope: Scope, x: Value) -> Value:
    sizes = spatial(x)
    if sizes is None:
        return x
    draw = scope.draw
    op_type = draw.one_of("MaxPool", "AveragePool", "AveragePool", "GlobalAveragePool")
    if op_type == "GlobalAveragePool":
        return scope.add(op_type, [x], (*x.shape[:2], *[1] * len(sizes)))
    kernel = [draw.integer(1, min(2, size)) for size in sizes]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    result = place(scope, attributes, sizes, kernel, dilates=False)
    if op_type == "AveragePool" and draw.flag():
        attributes["count_include_pad"] = 1
    return scope.add(op_type, [x], (*x.shape[:2], *result), **attributes)


@step(1)
def pad(scope: Scope, x: Value) -> Value:
    draw, rank = scope.draw, len(x.shape)
    pads = [draw.integer(0, 1) if axis > 1 else 0 for axis in [*range(rank)] * 2]
    filled = draw.one_of(0.0, 0.0, 1.5)
    shape = tuple(s + a + b for s, a, b in zip(x.shape, pads[:rank], pads[rank:], strict=True))
    if scope.opset < 11:
        return scope.add("Pad", [x], shape, pads=pads, value=filled)
    reads = [x, scope.whole(*pads), scope.constant(np.array(filled))]
    return scope.add("Pad", reads if filled or draw.flag() else reads[:2], shape)


@step(2)
def concat(scope: Scope, x: Value) -> Value:
    """Join what two operators make of a value, or a value with itself."""
    if len(x.shape) < 2:
        return x
    other = scope.draw.one_of(conv, batchnorm, affine, activation)(scope, x)
    if scope.draw.flag():
        x = scope.draw.one_of(conv, batchnorm, matmul)(scope, x)
    if x.shape[2:] != other.shape[2:] or len(x.shape) != len(other.shape):
        return x
    shape = (x.shape[0], x.shape[1] + other.shape[1], *x.shape[2:])
    axis = 1 - len(shape) if scope.opset >= 11 and scope.draw.flag(4) else 1
    return scope.add("Concat", [x, other], shape, axis=axis)


@step(1)
def split(scope: Scope, x: Value) -> Value:
    if len(x.shape) < 2 or x.shape[1] < 2:
        return x
    sizes = [1, x.shape[1] - 1]
    shapes = [(x.shape[0], size, *x.shape[2:]) for size in sizes]
    if scope.opset < 13:
        parts = scope.add_all("Split", [x], shapes, axis=1, split=sizes)
    else:
        parts = scope.add_all("Split", [x, scope.whole(*sizes)], shapes, axis=1)
    return scope.draw.one_of(*parts)


@step(1)
def part(scope: Scope, x: Value) -> Value:
    axis = scope.draw.integer(1, len(x.shape) - 1) if len(x.shape) > 1 else 0
    if not axis or x.shape[axis] < 2:
        return x
    return sliced(scope, x, axis, scope.draw.integer(0, 1), x.shape[axis])


@step(2)
def transpose(scope: Scope, x: Value) -> Value:
    rank = len(x.shape)
    if rank < 2:
        return x
    orders = [[0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]]
    if rank == 3:
        orders.append([2, 1, 0])
    order = scope.draw.one_of(*orders)
    turned = scope.add("Transpose", [x], tuple(x.shape[axis] for axis in order), perm=order)
    if scope.draw.flag():
        turned = scope.draw.one_of(affine, matmul, activation)(scope, turned)
    if not scope.draw.flag():
        return turned
    back = [order.index(axis) for axis in range(rank)]
    return scope.add("Transpose", [turned], tuple(turned.shape[axis] for axis in back), perm=back)


@step(2)
def reshape(scope: Scope, x: Value) -> Value:
    rank = len(x.shape)
    if rank < 2:
        return x
    samples, channels, *rest = x.shape
    inside = math.prod(rest)
    kinds: list[tuple[list[int], Shape]] = [
        ([0, 0, -1], (samples, channels, inside)),
        ([0, -1], (samples, channels * inside)),
        ([-1, channels, inside, 1], (samples, channels, inside, 1)),
        ([0, inside, -1], (samples, inside, channels)),
    ]
    if rest and rest[0] % 2 == 0:
        kinds.append(([-1, channels, 2, inside // 2], (samples, channels, 2, inside // 2)))
    if channels % 2 == 0:
        kinds.append(([-1, channels // 2, 2, inside], (samples, channels // 2, 2, inside)))
    kinds.append(([-1, channels], (samples * inside, channels)))
    written, shape = scope.draw.one_of(*kinds)
    return scope.add("Reshape", [x, scope.whole(*written)], shape)


@step(1)
def flatten(scope: Scope, x: Value) -> Value:
    if len(x.shape) < 2:
        return x
    attributes: dict[str, Any] = {} if scope.draw.flag() else {"axis": 1}
    return scope.add("Flatten", [x], (x.shape[0], math.prod(x.shape[1:])), **attributes)


@step(1)
def squeeze(scope: Scope, x: Value) -> Value:
    """Take an axis of size 1 away, or add one."""
    ones = [axis for axis, size in enumerate(x.shape) if axis and size == 1]
    added = not ones or scope.draw.flag()
    rank = len(x.shape)
    axis = scope.draw.integer(1, rank) if added else scope.draw.one_of(*ones)
    if added and rank > 4:
        return x
    op_type = "Unsqueeze" if added else "Squeeze"
    shape = (
        (*x.shape[:axis], 1, *x.shape[axis:]) if added else (*x.shape[:axis], *x.shape[axis + 1 :])
    )
    if scope.opset >= 13:
        return scope.add(op_type, [x, scope.whole(axis)], shape)
    return scope.add(op_type, [x], shape, axes=[axis])


@step(1)
def cast(scope: Scope, x: Value) -> Value:
    """Round on the way, and come back."""
    other = np.dtype(np.float16 if x.dtype != np.float16 else np.float32)
    to, back = (helper.np_dtype_to_tensor_dtype(dtype) for dtype in (other, x.dtype))
    there = scope.add("Cast", [x], x.shape, dtype=other, to=to)
    return scope.add("Cast", [there], x.shape, dtype=x.dtype, to=back)


@step(2)
def identity(scope: Scope, x: Value) -> Value:
    op_type = scope.draw.one_of("Identity", "Dropout")
    return scope.add(op_type, [x], x.shape)


@step(2)
def residual(scope: Scope, x: Value) -> Value:
    other = scope.draw.one_of(batchnorm, activation, affine, conv, matmul)(scope, x)
    if other.shape != x.shape:
        return other
    op_type = scope.draw.one_of("Add", "Add", "Sub", "Mul")
    return scope.add(op_type, [x, other], x.shape)
