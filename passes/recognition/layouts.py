"""Operators that only change the layout or the precision of a value."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.graph import constants
from syncbn_convert.passes.fusion.affine import Refusal
from syncbn_convert.passes.fusion.known_shapes import Shapes, Size

FLOATS = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
)


class Layouts:
    """Tells which nodes are Transposes, whatever they are called.

    Args:
        model: The model.
    """

    def __init__(self, model: ir.Model) -> None:
        self.shapes = Shapes(model)
        self._model = model

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the number of axes, or None where it is not known."""
        sizes = self.sizes(value)
        return len(sizes) if sizes is not None else None

    def sizes(self, value: ir.Value | None) -> list[Size] | None:
        """Return the sizes of the axes, or None where not even their number is known."""
        try:
            return self.shapes.of(value) if value is not None else None
        except Refusal:
            return None

    def order(self, node: ir.Node, rank: int) -> Sequence[int] | None:
        """Return the axis of the input for each axis of the output; None for other operators.

        A Reshape counts that moves axes of size 1 behind the samples, as tf2onnx writes a Transpose
        of single pixels.
        """
        if node.op_type == "Identity":
            return range(rank)
        if node.op_type == "Cast":
            target = node.attributes.get_int("to", 0)
            return range(rank) if target in [int(dtype) for dtype in FLOATS] else None
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", ()) or range(rank)[::-1]
            return order if sorted(order) == list(range(rank)) else None
        return self._order_of_reshape(node) if node.op_type == "Reshape" else None

    def _order_of_reshape(self, node: ir.Node) -> Sequence[int] | None:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = constants.constant_tensor(value, self._model) if value is not None else None
        before = self.sizes(node.inputs[0])
        if tensor is None or before is None or len(before) != tensor.size or not before:
            return None
        after = [int(size) for size in tensor.numpy()]
        if after[0] not in (-1, 0, before[0]) or any(size < 1 for size in after[1:]):
            return None
        if [size for size in before[1:] if size != 1] != [size for size in after[1:] if size != 1]:
            return None
        large, ones = (
            iter([axis for axis, size in enumerate(before) if axis and (size == 1) is one])
            for one in (False, True)
        )
        return [0, *(next(ones) if size == 1 else next(large) for size in after[1:])]
