"""Pools over windows and over whole images."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import Expression, arriving, forward
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.windows import Window, crop, spatial_sizes, window_of

_END = 2**62


@gradient("GlobalAveragePool")
def global_average_pool(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Each pixel gets an equal share."""
    x, dy = forward(tape, node.inputs[0]), arriving(tape, node, gradients)
    sizes = tape.op("Slice", tape.shape_of(x.value), tape.ints(2), tape.ints(_END))
    pixels = tape.op("Cast", tape.op("ReduceProd", sizes, keepdims=0), to=int(x.dtype))
    share = tape.op("Div", dy.value, pixels)
    return [tape.op("Expand", share, tape.shape_of(x.value))]


@gradient("GlobalMaxPool")
def global_max_pool(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Pixels that hold the maximum together get equal shares."""
    x, y = forward(tape, node.inputs[0]), forward(tape, node.outputs[0])
    dy = arriving(tape, node, gradients)
    largest = x.equals(y).cast(x.dtype)
    axes = tape.ints(*range(2, tape.rank(x.value)))
    ties = tape.op("ReduceSum", largest.value, axes, keepdims=1)
    return [tape.op("Mul", largest.value, tape.op("Div", dy.value, ties))]


@gradient("MaxPool")
def max_pool(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """The pixel that the forward kernel chose gets it all; it returns its indices for that."""
    x, dy = forward(tape, node.inputs[0]), arriving(tape, node, gradients)
    attributes = _attributes(node)
    if attributes.pop("storage_order", 0):
        _, indices = tape.ops("MaxPool", [x.value], 2, **attributes)
    else:
        indices = tape.forward_output(node, 1, ir.DataType.INT64)
    window = _window(tape, node)
    apart = all(
        stride >= extent for stride, extent in zip(window.strides, window.extents, strict=True)
    )
    shape = tape.shape_of(x.value)
    wide = dy if dy.dtype == ir.DataType.DOUBLE else dy.cast(ir.DataType.FLOAT)
    flat = tape.op(
        "ScatterElements",
        tape.op("Expand", wide.wrap(0.0).value, tape.op("ReduceProd", shape)),
        tape.op("Reshape", indices, tape.ints(-1)),
        tape.op("Reshape", wide.value, tape.ints(-1)),
        axis=0,
        reduction="none" if apart else "add",
    )
    dx = Expression(tape, tape.op("Reshape", flat, shape, allowzero=1), wide.dtype)
    return [dx.cast(x.dtype).value]


@gradient("AveragePool")
def average_pool(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """The pixels of a window get equal shares, by the divisor that the forward kernel has there."""
    x, dy = forward(tape, node.inputs[0]), arriving(tape, node, gradients)
    attributes = _attributes(node)
    window = _window(tape, node)
    with_pads = bool(attributes.get("count_include_pad", 0))
    plain = not attributes.get("ceil_mode", 0)
    if plain and (with_pads or (window.pads is not None and not any(window.pads))):
        share = dy * (1.0 / window.size)
    else:
        share = dy / _divisor(tape, x, attributes)
    return [_spread(tape, window, share.value, node)]


@gradient("LpPool")
def lp_pool(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """A window of zeros gets none."""
    x, y = forward(tape, node.inputs[0]), forward(tape, node.outputs[0])
    dy = arriving(tape, node, gradients)
    attributes = _attributes(node)
    power = float(attributes.get("p", 2))
    window = _window(tape, node)
    share = (y > 0.0).choose(dy * _power(y, 1.0 - power), 0.0)
    slope = x.apply("Sign") * _power(x.apply("Abs"), power - 1.0)
    return [tape.op("Mul", slope.value, _spread(tape, window, share.value, node))]


def _window(tape: GradientTape, node: ir.Node) -> Window:
    x = node.inputs[0]
    assert x is not None
    window = window_of(node, x, node.attributes["kernel_shape"].as_ints())
    jumps = any(
        stride > extent for stride, extent in zip(window.strides, window.extents, strict=True)
    )
    if jumps and node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        tape.refuse(
            node,
            "auto_pad with strides longer than the window is not the same on all runtimes",
            "spell it with pads",
        )
    return window


def _power(base: Expression, exponent: float) -> Expression:
    if exponent == 0.0:
        return base.wrap(1.0)
    return Expression(
        base.tape, base.tape.op("Pow", base.value, base.wrap(exponent).value), base.dtype
    )


def _divisor(tape: GradientTape, x: Expression, attributes: dict[str, Any]) -> Expression:
    """Return what an AveragePool divides by at each place, [1, 1, places].

    The operator itself, on ones, returns the share of its divisor that lies in the image, and
    LpPool counts how many elements these are. So ceil mode divides as the forward kernel does.
    """
    size = tape.op("Slice", tape.shape_of(x.value), tape.ints(2), tape.ints(_END))
    ones = tape.op(
        "ConstantOfShape",
        tape.op("Concat", tape.ints(1, 1), size, axis=0),
        value=ir.tensor(np.ones(1, np.float32)),
    )
    counted = {name: value for name, value in attributes.items() if name != "count_include_pad"}
    divisor = tape.op("LpPool", ones, p=1, **counted)
    if attributes.get("count_include_pad", 0):
        share = tape.op("AveragePool", ones, **attributes)
        divisor = tape.op("Round", tape.op("Div", divisor, share))
    return Expression(tape, divisor, ir.DataType.FLOAT).cast(x.dtype)


def _spread(tape: GradientTape, window: Window, share: ir.Value, node: ir.Node) -> ir.Value:
    """Give every element of a window its share, [N, C, places]; return sums as the image."""
    x = node.inputs[0]
    assert x is not None
    places = tape.op("Concat", tape.ints(-1, 1), tape.op("Shape", share, start=2), axis=0)
    full = tape.op(
        "ConvTranspose",
        tape.op("Reshape", share, places),
        tape.constant(np.ones((1, 1, *window.kernel)), tape.dtype(x)),
        strides=window.strides,
        dilations=window.dilations,
    )
    sizes = spatial_sizes(node.outputs[0])
    image = crop(tape, window, full, x, None if sizes is None else window.covered(sizes))
    return tape.op("Reshape", image, tape.shape_of(x), allowzero=1)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
