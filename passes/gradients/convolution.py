"""Convolutions, of one to three spatial axes, in groups."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import onnx_ir as ir

from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.tape import GradientTape
from syncbn_convert.passes.gradients.windows import (
    Window,
    fit,
    pad_image,
    pads_value,
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
        found[0] = _image_gradient(tape, Convolution(window, group, shape), dy, weight, x)
    if tape.wants(node, 1):
        found[1] = weight_gradient(tape, Convolution(window, group, shape), x, dy)
    if bias and tape.wants(node, 2):
        found[2] = channel_sum(tape, dy, shape[0])
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


def channel_sum(tape: GradientTape, value: ir.Value, channels: int) -> ir.Value:
    """Sum [N, C, spatial] over all axes but the channels.

    Axis by axis, as ONNX Runtime is several times slower over axes that are not neighbours.
    """
    rows = tape.op("Reshape", value, tape.ints(0, channels, -1))
    sums = tape.op("ReduceSum", rows, tape.ints(2), keepdims=0)
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


def _image_gradient(
    tape: GradientTape, convolution: Convolution, dy: ir.Value, weight: ir.Value, x: ir.Value
) -> ir.Value:
    """Return the gradient of the image: the transposed convolution of the field's."""
    window = convolution.window
    attributes: dict[str, Any] = {
        "strides": window.strides,
        "dilations": window.dilations,
        "kernel_shape": window.kernel,
        "group": convolution.group,
    }
    if window.pads is None:
        full = tape.op("ConvTranspose", dy, weight, **attributes)
        begins, _ = tape.ops("Split", [pads_value(tape, window, x)], 2, axis=0, num_outputs=2)
        return fit(tape, full, begins, x)
    attributes["pads"] = window.pads
    if set(window.strides) == {1}:
        return tape.op("ConvTranspose", dy, weight, **attributes)
    left = _left_over(window, x)
    if left is None:
        return fit(tape, tape.op("ConvTranspose", dy, weight, **attributes), None, x)
    return tape.op("ConvTranspose", dy, weight, output_padding=left, **attributes)


def _left_over(window: Window, x: ir.Value) -> list[int] | None:
    """Return how many pixels at the end no window sees, by axis; None if that is not known."""
    assert x.shape is not None
    sizes = [size for size in x.shape[2:] if isinstance(size, int)]
    if len(sizes) < window.axes:
        return None
    return [
        (size + begin + end - extent) % stride
        for size, begin, end, extent, stride in zip(
            sizes, window.begins, window.ends, window.extents, window.strides, strict=True
        )
    ]
