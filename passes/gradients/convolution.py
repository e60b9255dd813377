"""Convolutions, of one to three spatial axes, in groups."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.convolution_parts import (
    Convolution,
    image_gradient,
    weight_gradient,
)
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.windows import window_of


@gradient("Conv")
def conv(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any groups, dilations, strides and pads, `auto_pad` too; the kernel's shape must be known."""
    x, weight, *bias = node.inputs
    (dy,) = gradients
    assert x is not None
    assert weight is not None
    assert dy is not None
    shape = kernel_shape(tape, node, weight)
    window = window_of(node, x, shape[2:])
    convolution = Convolution(window, node.attributes.get_int("group", 1), shape)
    found: list[ir.Value | None] = [None] * len(node.inputs)
    if tape.wants(node, 0):
        found[0] = image_gradient(tape, convolution, dy, weight, node)
    if tape.wants(node, 1):
        found[1] = weight_gradient(tape, convolution, x, dy)
    if bias and tape.wants(node, 2):
        found[2] = channel_sum(tape, dy, window.axes)
    return found


def kernel_shape(tape: GradientTape, node: ir.Node, weight: ir.Value) -> list[int]:
    """Return the weight's shape, or refuse the node where it is not known."""
    shape = tape.static_shape(weight)
    if shape is None:
        tape.refuse(node, "the shape of its weight is not known", "make the weight an initializer")
    return shape


def channel_sum(tape: GradientTape, value: ir.Value, axes: int) -> ir.Value:
    """Sum [N, C, spatial], of `axes` spatial axes, to [C].

    In two steps, as ONNX Runtime is several times slower over axes that are not neighbours.
    """
    sums = tape.op("ReduceSum", value, tape.ints(*range(2, 2 + axes)), keepdims=0)
    return tape.op("ReduceSum", sums, tape.ints(0), keepdims=0)
