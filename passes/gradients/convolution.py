"""Convolutions, of one to three spatial axes, in groups."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.tape import GradientTape
from syncbn_convert.passes.gradients.windows import (
    Window,
    crop,
    pad_image,
    patches,
    window_of,
)


@gradient("Conv")
def conv(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any groups, dilations, strides and pads, `auto_pad` too; the kernel's shape must be known."""
    x, weight, *bias = node.inputs
    (dy,) = gradients
    assert x is not None
    assert weight is not None
    assert dy is not None
    shape = kernel_shape(tape, node, weight)
    group = node.attributes.get_int("group", 1)
    window = window_of(node, x, shape[2:])
    found: list[ir.Value | None] = [None] * len(node.inputs)
    if tape.wants(node, 0):
        found[0] = image_gradient(tape, Convolution(window, group, shape), dy, weight, node)
    if tape.wants(node, 1):
        found[1] = weight_gradient(tape, Convolution(window, group, shape), x, dy)
    if bias and tape.wants(node, 2):
        found[2] = channel_sum(tape, dy, window.axes)
    return found


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution from an image to a field of outputs.

    Attributes:
        window: How its kernel slides.
        group: Number of groups of channels that do not see each other.
        shape: Of its weight, [channels of the field, channels of the image / group, kernel].
    """

    window: Window
    group: int
    shape: list[int]


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


def weight_gradient(
    tape: GradientTape, convolution: Convolution, image: ir.Value, field: ir.Value
) -> ir.Value:
    """Return the gradient of a convolution's weight: one matrix product a group.

    Args:
        tape: What nodes are written on.
        convolution: From `image` to `field`.
        image: [N, channels of the image, spatial], a forward value or a gradient.
        field: [N, channels of the field, places].
    """
    window, group, shape = convolution.window, convolution.group, convolution.shape
    swap = [1, 0, *range(2, 2 + window.axes)]
    padded = pad_image(tape, tape.op("Transpose", image, perm=swap), window, image)
    seen = patches(tape, padded, window)
    columns = seen[0] if len(seen) == 1 else tape.op("Concat", *seen, axis=1)
    rows = tape.op("Transpose", field, perm=swap)
    if group == 1:
        columns = tape.op("Reshape", columns, tape.ints(math.prod(shape[1:]), -1))
        rows = tape.op("Reshape", rows, tape.ints(shape[0], -1))
        product = tape.op("Gemm", rows, columns, transB=1)
    else:
        columns = tape.op("Reshape", columns, tape.ints(group, math.prod(shape[1:]), -1))
        rows = tape.op("Reshape", rows, tape.ints(group, shape[0] // group, -1))
        product = tape.op("MatMul", rows, tape.op("Transpose", columns, perm=[0, 2, 1]))
    return tape.op("Reshape", product, tape.ints(*shape))


def image_gradient(
    tape: GradientTape, convolution: Convolution, dy: ir.Value, weight: ir.Value, node: ir.Node
) -> ir.Value:
    """Return the gradient of the image: the transposed convolution of the field's."""
    window = convolution.window
    x = node.inputs[0]
    assert x is not None
    full = tape.op(
        "ConvTranspose",
        dy,
        weight,
        strides=window.strides,
        dilations=window.dilations,
        kernel_shape=window.kernel,
        group=convolution.group,
    )
    return crop(tape, window, full, x, node.outputs[0])
