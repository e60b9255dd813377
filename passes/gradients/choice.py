"""Operators that let one of several values through."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import (
    Broadcast,
    Expression,
    arriving,
    broadcasting,
    forward,
)
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@broadcasting("Where")
def where(at: Broadcast, index: int) -> Expression:
    """Flows to what was chosen."""
    condition = at.inputs[0]
    return at.dy * (~condition if index == 2 else condition).cast(at.y.dtype)


@gradient("Clip")
def clip(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Zero at the bounds, as TensorFlow's and torch's relu6; a bound gets what it cut off."""
    (_, low, high) = [*node.inputs, None, None][:3]
    y, dy = forward(tape, node.outputs[0]), arriving(tape, node, gradients)
    at_low = None if low is None else y <= forward(tape, low)
    at_high = None if high is None else y >= forward(tape, high)
    cut = [held for held in (at_low, at_high) if held is not None]
    dx = dy
    for held in cut:
        dx = dx * (~held).cast(y.dtype)
    if at_low is not None and at_high is not None:
        at_low = at_low & ~at_high
    bounds = [
        (dy * held.cast(y.dtype)).sum_to(y.value, bound)
        if held is not None and bound is not None and tape.wants(node, index)
        else None
        for index, held, bound in ((1, at_low, low), (2, at_high, high))
    ]
    return [dx.value, *bounds[: len(node.inputs) - 1]]
