"""Functions, bodies, and whole numbers beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.random_graphs.layers import batchnorm, conv
from tests.random_graphs.sketch import Scope, Shape, Value
from tests.random_graphs.steps import some, step

_CHANGED_IN_16 = {"Identity", "LeakyRelu"}
BODY = "branch"
"""How the names of bodies begin."""


@step(2)
def call(scope: Scope, x: Value) -> Value:
    """Call a function of the model."""
    sketch = scope.sketch
    if scope.kind == "branch" or (scope.kind == "function" and scope.depth > 1):
        return x
    if sketch.ir_version < 8:
        return x
    inner = Scope(sketch, "function", scope)
    inside = Value(inner.name(), x.shape, x.dtype)
    y = inside
    for _ in range(scope.draw.integer(1, 3)):
        y = scope.draw.one_of(conv, batchnorm, batchnorm, some)(inner, y)
    if y is inside:
        y = inner.add("Identity", [y], y.shape)
    name = f"block{len(sketch.functions)}"
    version = sketch.opset
    if version in (15, 16, 17) and not {node.op_type for node in inner.nodes} & _CHANGED_IN_16:
        version = scope.draw.integer(15, 17)
    imports = [helper.make_opsetid("", version), helper.make_opsetid("local", 1)]
    sketch.functions[name] = helper.make_function(
        "local", name, [inside.name, *(n for n, _ in inner.passed)], [y.name], inner.nodes, imports
    )
    passed = [value for _, value in inner.passed]
    y = scope.add(name, [x, *passed], y.shape, dtype=y.dtype, domain="local")
    if scope.draw.flag(4) and y.shape == x.shape:
        y = scope.add(name, [y, *passed], y.shape, dtype=y.dtype, domain="local")
    return y


@step(1)
def choose(scope: Scope, x: Value) -> Value:
    """Choose between two ways of the same shape."""
    if scope.kind != "main":
        return x
    sketch, branches = scope.sketch, []
    condition = sketch.inputs.get("condition")
    if condition is None:
        array = np.array(scope.draw.flag())
        sketch.input(Value("condition", (), np.dtype(np.bool_)), array, ())
    shape: Shape | None = None
    for number in range(2):
        inner = Scope(sketch, "branch", scope)
        y = x
        for kind in (batchnorm, some):
            after = kind(inner, y)
            y = after if number == 0 or after.shape == shape else y
        if number and y.shape != shape:
            return x
        shape = y.shape
        y = inner.add("Identity", [y], y.shape)
        element = helper.np_dtype_to_tensor_dtype(y.dtype)
        info = helper.make_tensor_value_info(y.name, element, [None] * len(y.shape))
        branches.append(helper.make_graph(inner.nodes, f"{BODY}{number}", [], [info]))
    reads = [Value("condition", (), np.dtype(np.bool_))]
    then, other = branches
    return scope.add(
        "If", reads, shape or x.shape, dtype=x.dtype, then_branch=then, else_branch=other
    )


@step(1)
def integers(scope: Scope, x: Value) -> Value:
    """Multiply whole numbers beside."""
    if scope.kind != "main" or "whole" in scope.sketch.inputs:
        return x
    sketch = scope.sketch
    kind: np.dtype[Any] = np.dtype(scope.draw.one_of(np.int32, np.int64))
    array = scope.draw.numbers.integers(-5, 5, (2, 3)).astype(kind)
    whole = sketch.input(Value("whole", (2, 3), kind), array, (2, 3))
    weight = scope.stored(np.arange(6, dtype=kind).reshape(3, 2))
    y = scope.add("MatMul", [whole, weight], (2, 2)) if sketch.opset >= 9 else whole
    factor = scope.stored(np.full(y.shape[-1:], 3, kind))
    scope.statistics.append(scope.add(scope.draw.one_of("Mul", "Add", "Div"), [y, factor], y.shape))
    return x


def output_info(value: Value, sizes: Any) -> onnx.ValueInfoProto:
    """Return how a graph declares an output."""
    element = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(value.name, element, sizes)
