"""Resize, as the transpose of the linear map that it is.

Resizing works axis by axis, each a matrix. The matrix of an axis is what the forward operator makes
of the identity matrix, so all its modes and roundings are the runtime's own.
"""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient

_KEPT = (
    "antialias",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "mode",
    "nearest_mode",
)


@gradient("Resize")
def resize(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Nearest, linear and cubic; no crop (tf_crop_and_resize), aspect ratio policy stretch."""
    _refuse_crops(tape, node)
    (x, *others) = node.inputs
    (dx,) = gradients
    assert x is not None
    assert dx is not None
    rank = tape.rank(x)
    axes = [axis % rank for axis in node.attributes.get_ints("axes", None) or range(rank)]
    for place, axis in enumerate(axes):
        if not _keeps_size(tape, node, place, axis):
            dx = _apply(tape, _matrix(tape, node, place, axis), dx, axis, rank)
    return [dx, *[None] * len(others)]


def _refuse_crops(tape: GradientTape, node: ir.Node) -> None:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if mode == "tf_crop_and_resize":
        tape.refuse(node, "it crops (tf_crop_and_resize)", "crop with Slice")
    if policy != "stretch":
        tape.refuse(node, f"its keep_aspect_ratio_policy is {policy}", "give scales")


def _keeps_size(tape: GradientTape, node: ir.Node, place: int, axis: int) -> bool:
    """Whether an axis is surely not resized."""
    (x, _, scales) = [*node.inputs, None, None][:3]
    known = tape.known(scales)
    if known is not None and known.size:
        return bool(known[place] == 1)
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return False
    sizes = tape.known(node.inputs[3])
    assert x is not None
    assert x.shape is not None
    if sizes is not None and isinstance(x.shape[axis], int):
        return bool(sizes[place] == x.shape[axis])
    y = node.outputs[0]
    own, new = x.shape[axis], None if y.shape is None else y.shape[axis]
    return own == new and (isinstance(own, int) or own.value is not None)


def _matrix(tape: GradientTape, node: ir.Node, place: int, axis: int) -> ir.Value:
    """Return the matrix [output size, input size] of an axis."""
    (x, _, scales, sizes) = [*node.inputs, None, None, None][:4]
    assert x is not None
    size = tape.op("Shape", x, start=axis, end=axis + 1)
    square = tape.op("Concat", size, size, axis=0)
    identity = tape.op("EyeLike", tape.zeros(square, ir.DataType.FLOAT))
    if sizes is not None:
        wanted = tape.op("Concat", tape.op("Gather", sizes, tape.ints(place)), size, axis=0)
        operands = [identity, None, None, wanted]
    else:
        scale = tape.op("Gather", scales, tape.ints(place))
        one = tape.constant([1.0], ir.DataType.FLOAT)
        operands = [identity, None, tape.op("Concat", scale, one, axis=0)]
    attributes = {name: node.attributes[name] for name in _KEPT if name in node.attributes}
    kept = {name: attribute.value for name, attribute in attributes.items()}
    matrix = tape.ops("Resize", operands, 1, **kept)[0]
    dtype = tape.dtype(x)
    return matrix if dtype == ir.DataType.FLOAT else tape.op("Cast", matrix, to=int(dtype))


def _apply(
    tape: GradientTape, matrix: ir.Value, gradient: ir.Value, axis: int, rank: int
) -> ir.Value:
    """Multiply a gradient along one axis with a transposed matrix."""
    if axis == rank - 1:
        return tape.op("MatMul", gradient, matrix)
    transposed = tape.op("Transpose", matrix, perm=[1, 0])
    if axis == rank - 2:
        return tape.op("MatMul", transposed, gradient)
    order = [other for other in range(rank) if other != axis] + [axis]
    moved = tape.op("MatMul", tape.op("Transpose", gradient, perm=order), matrix)
    return tape.op("Transpose", moved, perm=[order.index(place) for place in range(rank)])
