"""Sizes that count samples, where some samples of a piece are padding.

A shape is known when the program is traced, padding included, and that is right where it shapes
another value. Where it becomes a number that is computed with, it has to count real samples alone.
So beside a known value it is kept how much of each of its numbers there is for one sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from syncbn_convert.xla import sample_axes

if TYPE_CHECKING:
    from syncbn_convert.xla.translations import Array, Call, Operator

Sized = np.ndarray[Any, Any] | None
OF_SHAPES = ("Shape", "Size")
_MOVING = ("Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_MAKING = ("ConstantOfShape", "Expand", "Range", "Reshape", "Tile")


def has_samples(call: Call) -> bool:
    """Whether what a node makes may hold samples."""
    if any(layout is not None for layout in call.layouts):
        return True
    return call.node.op_type in _MAKING and any(sized is not None for sized in call.sized)


def of_output(operator: Operator, call: Call) -> Sized:
    """Return how much of each number of a known output there is for one sample."""
    kind = call.node.op_type
    layout = call.layouts[0] if call.layouts else None
    if kind in OF_SHAPES and layout is not None:
        return _of_shape(call, layout)
    if not any(sized is not None and sized.any() for sized in call.sized):
        return None
    if kind == "Cast" and np.issubdtype(call.dtype(call.integer("to", 1)), np.floating):
        return None
    if not all(value is None or isinstance(value, np.ndarray) for value in call.inputs):
        return None
    if kind == "Concat":
        parts = [
            np.zeros_like(value) if sized is None else sized
            for value, sized in zip(call.inputs, call.sized, strict=True)
        ]
        return np.asarray(operator.translate(call, *parts))
    if kind in ("Mul", "Add", "Sub"):
        return _of_arithmetic(operator, call)
    if kind in _MOVING and call.sized[0] is not None:
        return np.asarray(operator.translate(call, call.sized[0], *call.inputs[1:]))
    if kind in _MAKING:
        return None
    raise sample_axes.mixes(call)


def _of_shape(call: Call, layout: sample_axes.Layout) -> Sized:
    shape = np.shape(call.inputs[0])
    found = np.zeros(len(shape), np.int64)
    found[layout.axis] = layout.inner
    if call.node.op_type == "Size":
        samples = shape[layout.axis] // layout.inner
        return np.asarray(int(np.prod(shape)) // max(samples, 1), np.int64)
    return found[slice(call.attributes.get("start", 0), call.attributes.get("end"))]


def _of_arithmetic(operator: Operator, call: Call) -> Sized:
    (left, right), (first, second) = call.sized, call.inputs
    if call.node.op_type == "Mul":
        if left is not None and right is not None:
            raise sample_axes.mixes(call)
        sized, factor = (left, second) if left is not None else (right, first)
        return np.asarray(np.asarray(sized) * factor)
    zeros = [np.zeros_like(value) for value in (first, second)]
    parts = [
        zero if sized is None else sized for zero, sized in zip(zeros, call.sized, strict=True)
    ]
    return np.asarray(operator.translate(call, *parts))


def as_numbers(call: Call) -> Array | None:
    """Return what a cast of sizes to a floating-point type makes: real samples counted alone."""
    weights, sized = call.run.weights, call.sized[0] if call.sized else None
    if weights is None or sized is None or call.node.op_type != "Cast" or not sized.any():
        return None
    dtype = call.dtype(call.integer("to", 1))
    if not np.issubdtype(dtype, np.floating):
        return None
    value = call.inputs[0]
    assert value is not None
    rest = (value - sized * weights.size).astype(dtype)
    return rest + sized.astype(dtype) * weights.sum().astype(dtype)
