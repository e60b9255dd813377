"""Whether a mask is no larger than what it is multiplied onto."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.graph import constants
from syncbn_convert.graph.value_types import inferred

_Size = int | str | None


class MaskShapes:
    """The shapes of a model's values, as far as they are known.

    Args:
        model: The model, whose types and shapes are inferred where they are open.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inferred = inferred(model)

    def dtype_of(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type of a value."""
        found = self._inferred.get(value)
        return value.dtype or (None if found is None else found.dtype)

    def constant_of(self, draw: ir.Node) -> list[int]:
        """Return the shape that a node has as its attribute."""
        return [int(size) for size in draw.attributes.get_ints("shape", ())]

    def within(self, source: ir.Value | None, shape: list[int] | None, kept: ir.Value) -> bool:
        """Whether a value of the shape of `source`, or of `shape`, is broadcast onto `kept`.

        Args:
            source: A value.
            shape: The shape itself, where there is no such value.
            kept: What it is broadcast onto.
        """
        if source is kept:
            return True
        sizes = list(shape or []) if source is None else self._sizes(source, kept)
        wanted = self._known(kept)
        if sizes is None or wanted is None or len(sizes) > len(wanted):
            return False
        pairs = zip(reversed(sizes), reversed(wanted), strict=False)
        places = range(len(wanted) - 1, -1, -1)
        return all(
            mine == 1 or (mine is not None and mine in (theirs, f"{kept.name}[{place}]"))
            for (mine, theirs), place in zip(pairs, places, strict=False)
        )

    def _known(self, value: ir.Value) -> list[_Size] | None:
        found = self._inferred.get(value)
        shape = value.shape
        if shape is None and found is not None:
            shape = found.shape
        if shape is None:
            return None
        return [size if isinstance(size, int) else size.value for size in shape]

    def _sizes(self, source: ir.Value, kept: ir.Value) -> list[_Size] | None:
        node = source.producer()
        if node is not None and node.op_type in ("ConstantOfShape", "Expand"):
            shape = node.inputs[-1]
            producer = None if shape is None else shape.producer()
            if producer is not None and producer.op_type == "Concat":
                return [self._size(part, kept) for part in producer.inputs]
            if producer is not None and producer.op_type == "Shape" and not producer.attributes:
                (shaped,) = producer.inputs
                rank = self._known(kept)
                if shaped is kept and rank is not None:
                    return [f"{kept.name}[{axis}]" for axis in range(len(rank))]
        return self._known(source)

    def _size(self, part: ir.Value | None, kept: ir.Value) -> _Size:
        """Return one size of a shape that is put together: a number, or an axis of `kept`."""
        if part is None:
            return None
        tensor = constants.constant_tensor(part, self._model)
        if tensor is not None:
            return int(tensor.numpy().item()) if tensor.size == 1 else None
        node = part.producer()
        while node is not None and node.op_type in ("Unsqueeze", "Reshape", "Identity"):
            node = None if node.inputs[0] is None else node.inputs[0].producer()
        if node is None or node.op_type != "Gather" or None in node.inputs[:2]:
            return None
        shape, index = node.inputs[:2]
        assert shape is not None
        assert index is not None
        reader, place = shape.producer(), constants.constant_tensor(index, self._model)
        if reader is None or reader.op_type != "Shape" or reader.attributes or place is None:
            return None
        return f"{kept.name}[{int(place.numpy().item())}]" if reader.inputs[0] is kept else None
