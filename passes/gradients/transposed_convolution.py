"""Transposed convolutions, of one to three spatial axes, in groups."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from syncbn_convert.passes.gradients.convolution import channel_sum, kernel_shape
from syncbn_convert.passes.gradients.convolution_parts import Convolution, weight_gradient
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.windows import (
    Window,
    explicit_window,
    ints,
    split_evenly,
)


@gradient("ConvTranspose")
def conv_transpose(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any groups, dilations, strides, pads and output padding, but no `output_shape`.

    It is the gradient of a convolution from its output to its input; so its own gradient is that
    convolution.
    """
    x, weight, *bias = node.inputs
    (dy,) = gradients
    assert x is not None
    assert weight is not None
    assert dy is not None
    if "output_shape" in node.attributes:
        tape.refuse(
            node,
            "it has output_shape, and ONNX's shape inference mistakes that for the whole shape",
            "spell it with pads",
        )
    shape = kernel_shape(tape, node, weight)
    group = node.attributes.get_int("group", 1)
    window = _window(node, shape[2:])
    padded = tape.op("Pad", dy, tape.ints(0, 0, *window.begins, 0, 0, *window.ends))
    convolution = Convolution(
        dataclasses.replace(window, pads=(0,) * (2 * window.axes)), group, shape
    )
    found: list[ir.Value | None] = [None] * len(node.inputs)
    if tape.wants(node, 0):
        found[0] = tape.op(
            "Conv",
            padded,
            weight,
            strides=window.strides,
            dilations=window.dilations,
            kernel_shape=window.kernel,
            group=group,
        )
    if tape.wants(node, 1):
        found[1] = weight_gradient(tape, convolution, padded, x)
    if bias and tape.wants(node, 2):
        found[2] = channel_sum(tape, dy, window.axes)
    return found


def _window(node: ir.Node, kernel: list[int]) -> Window:
    """Return the window with what it needs around the output: negative where that is longer."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    window = explicit_window(node, kernel)
    extra = ints(node, "output_padding", [0] * window.axes)
    begins, ends = window.begins, window.ends
    if mode.startswith("SAME"):
        totals = [
            max(extent + more - stride, 0)
            for extent, more, stride in zip(window.extents, extra, window.strides, strict=True)
        ]
        begins, ends = split_evenly(totals, mode != "SAME_UPPER")
    ends = tuple(end - more for end, more in zip(ends, extra, strict=True))
    return dataclasses.replace(window, pads=(*begins, *ends))
