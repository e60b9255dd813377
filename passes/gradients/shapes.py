"""Operators that change the shape or the order of elements."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any shape or axes, also computed ones."""
    (x, *others) = node.inputs
    assert x is not None
    shape = tape.shape_of(x)
    return [tape.op("Reshape", gradients[0], shape, allowzero=1), *[None] * len(others)]


@gradient("Transpose")
def transpose(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any permutation."""
    if "perm" not in node.attributes:
        return [tape.op("Transpose", gradients[0])]
    permutation = node.attributes["perm"].as_ints()
    inverse = [permutation.index(axis) for axis in range(len(permutation))]
    return [tape.op("Transpose", gradients[0], perm=inverse)]


@gradient("Expand")
def expand(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any shape, also a computed one."""
    (x, _) = node.inputs
    (dy,) = gradients
    assert x is not None
    assert dy is not None
    return [tape.sum_to(dy, node.outputs[0], x), None]


@gradient("Tile")
def tile(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any repeats, also computed ones."""
    (x, repeats) = node.inputs
    assert x is not None
    columns = [tape.op("Unsqueeze", vector, tape.ints(1)) for vector in (repeats, tape.shape_of(x))]
    shape = tape.op("Reshape", tape.op("Concat", *columns, axis=1), tape.ints(-1))
    copies = tape.op("Reshape", gradients[0], shape, allowzero=1)
    axes = tape.ints(*range(0, 2 * tape.rank(x), 2))
    return [tape.op("ReduceSum", copies, axes, keepdims=0, noop_with_empty_axes=1), None]


@gradient("Concat")
def concat(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any axis."""
    axis = node.attributes["axis"].as_int()
    sizes = [_size(tape, value, axis) for value in node.inputs if value is not None]
    split = sizes[0] if len(sizes) == 1 else tape.op("Concat", *sizes, axis=0)
    return tape.ops("Split", [gradients[0], split], len(sizes), axis=axis)


@gradient("Split")
def split(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Even pieces, and sizes that are given or computed."""
    pieces = [
        tape.zeros_like(output) if dy is None else dy
        for output, dy in zip(node.outputs, gradients, strict=True)
    ]
    dx = tape.op("Concat", *pieces, axis=node.attributes.get_int("axis", 0))
    return [dx, *[None] * (len(node.inputs) - 1)]


@gradient("DepthToSpace")
def depth_to_space(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """DCR and CRD."""
    block = node.attributes["blocksize"].as_int()
    if node.attributes.get_string("mode", "DCR") == "DCR":
        return [tape.op("SpaceToDepth", gradients[0], blocksize=block)]
    (x,) = node.inputs
    assert x is not None
    shape = tape.op("Shape", x)
    batch, height, width = (_part(tape, shape, axis) for axis in (0, 2, 3))
    blocks, channels = tape.ints(block), _part(tape, tape.op("Shape", node.outputs[0]), 1)
    cells = tape.op("Concat", batch, channels, height, blocks, width, blocks, axis=0)
    pixels = tape.op("Reshape", gradients[0], cells, allowzero=1)
    stacked = tape.op("Transpose", pixels, perm=[0, 1, 3, 5, 2, 4])
    return [tape.op("Reshape", stacked, shape, allowzero=1)]


@gradient("SpaceToDepth")
def space_to_depth(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any block size."""
    block = node.attributes["blocksize"].as_int()
    return [tape.op("DepthToSpace", gradients[0], blocksize=block, mode="DCR")]


def _size(tape: GradientTape, value: ir.Value, axis: int) -> ir.Value:
    """Return the size of one axis, int64 [1]."""
    size = None if value.shape is None else value.shape[axis]
    return tape.ints(size) if isinstance(size, int) else _part(tape, tape.op("Shape", value), axis)


def _part(tape: GradientTape, shape: ir.Value, axis: int) -> ir.Value:
    return tape.op("Gather", shape, tape.ints(axis))
