"""Operators that pick elements or put them somewhere, and padding.

What has no simpler inverse is added up by position: the operator is run once more on the numbers
0, 1, 2 ... in the shape of its input, which says where each element of its output came from.
"""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import Expression
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.nondifferentiable import take_as_constant
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient("Slice")
def slice_(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any steps, also negative and computed ones."""
    (x, starts, *_) = node.inputs
    assert x is not None
    others = [None] * (len(node.inputs) - 1)
    axes = _axes_of_steps_one(tape, node)
    if axes is None:
        positions = tape.op("Slice", _positions(tape, x), *node.inputs[1:])
        return [_add_up(tape, x, positions, gradients[0]), *others]
    shape, taken = (
        tape.op("Gather", tape.op("Shape", value), axes) for value in (x, node.outputs[0])
    )
    return [_pad_back(tape, gradients[0], starts, shape, taken, axes), *others]


@gradient("Pad")
def pad(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """All modes, negative pads too; what it pads with is a constant."""
    (x, pads, *rest) = node.inputs
    assert x is not None
    take_as_constant(tape, node, 2)
    others = [None] * (len(node.inputs) - 1)
    axes = rest[1] if len(rest) > 1 else None
    mode = node.attributes.get_string("mode", "constant")
    if mode == "constant":
        return [tape.op("Pad", gradients[0], tape.op("Neg", pads), None, axes), *others]
    positions = tape.op("Pad", _positions(tape, x), pads, None, axes, mode=mode)
    return [_add_up(tape, x, positions, gradients[0]), *others]


@gradient("Gather")
def gather(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any axis; indices that repeat add up."""
    (x, indices) = node.inputs
    assert x is not None
    assert indices is not None
    axis = node.attributes.get_int("axis", 0) % tape.rank(x)
    if axis == 0:
        rows = tape.op("Unsqueeze", indices, tape.ints(-1))
        rows = tape.op("Cast", rows, to=int(ir.DataType.INT64))
        return [
            _sum_into(tape, tape.shape_of(x), tape.dtype(x), "ScatterND", rows, gradients[0]),
            None,
        ]
    positions = tape.op("Gather", _positions(tape, x), indices, axis=axis)
    return [_add_up(tape, x, positions, gradients[0]), None]


@gradient("GatherElements")
def gather_elements(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any axis; indices that repeat add up."""
    (x, indices) = node.inputs
    assert x is not None
    axis = node.attributes.get_int("axis", 0)
    shape, dtype = tape.shape_of(x), tape.dtype(x)
    dx = _sum_into(tape, shape, dtype, "ScatterElements", indices, gradients[0], axis)
    return [dx, None]


@gradient("GatherND")
def gather_nd(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any batch_dims; indices that repeat add up."""
    (x, indices) = node.inputs
    assert x is not None
    batch = node.attributes.get_int("batch_dims", 0)
    positions = tape.op("GatherND", _positions(tape, x), indices, batch_dims=batch)
    return [_add_up(tape, x, positions, gradients[0]), None]


@gradient("TopK")
def top_k(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Flows to the elements that were picked."""
    (x, _) = node.inputs
    assert x is not None
    indices = tape.forward_output(node, 1, ir.DataType.INT64)
    axis = node.attributes.get_int("axis", -1)
    shape, dtype = tape.shape_of(x), tape.dtype(x)
    dx = _sum_into(tape, shape, dtype, "ScatterElements", indices, gradients[0], axis)
    return [dx, None]


@gradient("ScatterElements")
def scatter_elements(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Reductions none (of indices that do not repeat) and add."""
    (_, indices, updates) = node.inputs
    assert updates is not None
    axis = node.attributes.get_int("axis", 0)
    data = gradients[0]
    if _replaces(tape, node) and tape.wants(node, 0):
        zeros = tape.zeros_like(updates)
        data = tape.op("ScatterElements", gradients[0], indices, zeros, axis=axis)
    return [data, None, tape.op("GatherElements", gradients[0], indices, axis=axis)]


@gradient("ScatterND")
def scatter_nd(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Reductions none (of indices that do not repeat) and add."""
    (_, indices, updates) = node.inputs
    assert updates is not None
    data = gradients[0]
    if _replaces(tape, node) and tape.wants(node, 0):
        data = tape.op("ScatterND", gradients[0], indices, tape.zeros_like(updates))
    return [data, None, tape.op("GatherND", gradients[0], indices)]


@gradient("Trilu")
def triangle(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Upper and lower."""
    upper = node.attributes.get_int("upper", 1)
    dx = tape.op("Trilu", gradients[0], *node.inputs[1:], upper=upper)
    return [dx, *[None] * (len(node.inputs) - 1)]


@gradient("ReverseSequence")
def reverse_sequence(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any axes."""
    dx = tape.op(
        "ReverseSequence",
        gradients[0],
        node.inputs[1],
        time_axis=node.attributes.get_int("time_axis", 0),
        batch_axis=node.attributes.get_int("batch_axis", 1),
    )
    return [dx, None]


def _replaces(tape: GradientTape, node: ir.Node) -> bool:
    """Whether a scatter replaces elements; else it adds to them."""
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in ("none", "add"):
        tape.refuse(node, f"its reduction is {reduction}", "use none or add")
    return reduction == "none"


def _axes_of_steps_one(tape: GradientTape, node: ir.Node) -> ir.Value | None:
    """Return the axes that a Slice is about, or None if they or steps of 1 are not known."""
    (x, starts, _, axes, steps) = [*node.inputs, None, None][:5]
    assert x is not None
    assert starts is not None
    if steps is not None:
        known_steps = tape.known(steps)
        if known_steps is None or (known_steps != 1).any():
            return None
    if axes is not None:
        known_axes = tape.known(axes)
        rank = tape.rank(x)
        return None if known_axes is None else tape.ints(*(int(a) % rank for a in known_axes))
    sizes = tape.static_shape(starts)
    return None if sizes is None else tape.ints(*range(sizes[0]))


def _pad_back(
    tape: GradientTape,
    gradient: ir.Value | None,
    starts: ir.Value | None,
    shape: ir.Value,
    taken: ir.Value,
    axes: ir.Value,
) -> ir.Value:
    """Put zeros before and after a slice of step 1.

    Args:
        tape: What nodes are written on.
        gradient: The gradient of the slice.
        starts: Where it begins, as the operator takes it: negative from the end, or beyond it.
        shape: The sizes of the axes before slicing.
        taken: Their sizes after it.
        axes: The axes.
    """
    zero = tape.ints(0)
    begin = tape.op("Cast", starts, to=int(ir.DataType.INT64))
    begin = tape.op("Where", tape.op("Less", begin, zero), tape.op("Add", begin, shape), begin)
    begin = tape.op("Min", tape.op("Max", begin, zero), shape)
    end = tape.op("Sub", tape.op("Sub", shape, begin), taken)
    return tape.op("Pad", gradient, tape.op("Concat", begin, end, axis=0), None, axes)


def _positions(tape: GradientTape, x: ir.Value) -> ir.Value:
    """Return 0, 1, 2 ... in the shape of a forward value, int64."""
    zero, one = (tape.constant(number, ir.DataType.INT64) for number in (0, 1))
    numbers = tape.op("Range", zero, tape.op("Size", x), one)
    return tape.op("Reshape", numbers, tape.shape_of(x), allowzero=1)


def _add_up(
    tape: GradientTape, x: ir.Value, positions: ir.Value, gradient: ir.Value | None
) -> ir.Value:
    """Return zeros of the shape of `x` with every element of a gradient added at its position."""
    line = tape.ints(-1)
    size = tape.op("Reshape", tape.op("Size", x), line)
    places, added = (tape.op("Reshape", value, line) for value in (positions, gradient))
    total = _sum_into(tape, size, tape.dtype(x), "ScatterElements", places, added)
    return tape.op("Reshape", total, tape.shape_of(x), allowzero=1)


def _sum_into(
    tape: GradientTape,
    shape: ir.Value,
    dtype: ir.DataType,
    scatter: str,
    indices: ir.Value | None,
    gradient: ir.Value | None,
    axis: int | None = None,
) -> ir.Value:
    """Add a gradient to zeros; in float32 for less, as ONNX Runtime's CPU cannot otherwise."""
    assert gradient is not None
    wide = ir.DataType.DOUBLE if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    added = Expression(tape, gradient, dtype).cast(wide).value
    zeros = tape.zeros(shape, wide)
    total = tape.op(scatter, zeros, indices, added, axis=axis, reduction="add")
    return Expression(tape, total, wide).cast(dtype).value
