"""Targets of a Reshape that an exporter computes, though all but the batch is known."""

from __future__ import annotations

import dataclasses
import itertools
import math

import onnx_ir as ir

from syncbn_convert.graph import constants, graphs
from syncbn_convert.passes.fusion.affine import Refusal
from syncbn_convert.passes.fusion.known_shapes import Shapes

_SAME_ELEMENTS = frozenset(["Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"])
_MOST_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A size that is not known: that of an axis of a value, or any.

    Attributes:
        value: Whose size it is; None if that is not known.
        axis: Of the value.
        name: What the model calls it; two of one name are equal if an input has that name, too.
    """

    value: ir.Value | None = None
    axis: int = 0
    name: str | None = None


Sizes = list[int | Dimension]


class Targets:
    """What is known of the targets of a model's Reshape nodes, once its constants are folded.

    Args:
        model: Whose values they are.
        shapes: Of its values.
    """

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self._model = model
        self._shapes = shapes
        self._names = {
            size.value
            for value in model.graph.inputs
            for size in value.shape or ()
            if not isinstance(size, int)
        }

    def constant(self, node: ir.Node) -> list[int] | None:
        """Return a constant target for a Reshape that computes its own; None if there is none.

        A size that is that of the same axis of the input becomes 0, and one that is not known -1.
        """
        data, target = node.inputs[0], node.inputs[1]
        sizes = self._sizes(target, _MOST_STEPS)
        if data is None or sizes is None:
            return None
        copies = not node.attributes.get_int("allowzero", 0)
        shape = self._shape(data)
        if not copies:
            sizes = self._with_rest(sizes, shape) if 0 not in sizes else None
            if sizes is None:
                return None
        found = [
            0 if copies and self._is_same(size, data, axis, shape) else size
            for axis, size in enumerate(sizes)
        ]
        unknown = [size for size in found if isinstance(size, Dimension)]
        if len(unknown) > 1 or (unknown and any(size in (-1, 0) for size in found)):
            return None
        return [-1 if isinstance(size, Dimension) else size for size in found]

    def _with_rest(self, sizes: Sizes, shape: Sizes | None) -> Sizes | None:
        """Return a target with a number for -1; None where the input does not tell it.

        It does so if the one size of it that is not known is in the target, too.
        """
        if -1 not in sizes:
            return sizes
        unknown = [size for size in sizes if isinstance(size, Dimension)]
        given = [size for size in shape or () if isinstance(size, Dimension)]
        if len(unknown) != 1 or len(given) != 1 or unknown[0].name not in self._names:
            return None
        known = math.prod(size for size in sizes if isinstance(size, int) and size != -1)
        held = math.prod(size for size in shape or () if isinstance(size, int))
        if unknown[0].name != given[0].name or known < 1 or held % known:
            return None
        return [held // known if size == -1 else size for size in sizes]

    def _is_same(
        self, size: int | Dimension, data: ir.Value, axis: int, shape: Sizes | None
    ) -> bool:
        """Whether an unknown size is that of the same axis of the input."""
        if not isinstance(size, Dimension):
            return False
        if size.value is data and size.axis == axis:
            return True
        own = shape[axis] if shape is not None and axis < len(shape) else None
        named = size.name is not None and size.name in self._names
        return named and isinstance(own, Dimension) and own.name == size.name

    def _sizes(self, value: ir.Value | None, steps: int) -> Sizes | None:
        """Return the elements of a vector or scalar of int64; None if their number is not known."""
        if value is None:
            return None
        tensor = constants.constant_tensor(value, self._model) if value.is_initializer() else None
        if tensor is not None:
            return [int(element) for element in tensor.numpy().flat]
        node = value.producer()
        if node is None or node.domain not in graphs.STANDARD_DOMAINS or not steps:
            return None
        if node.op_type == "Shape":
            return self._of_shape(node)
        if node.op_type in _SAME_ELEMENTS:
            return self._sizes(node.inputs[0], steps - 1)
        if node.op_type == "Concat":
            parts = [self._sizes(part, steps - 1) for part in node.inputs]
            known = [part for part in parts if part is not None]
            return list(itertools.chain(*known)) if len(known) == len(parts) else None
        if node.op_type == "Gather":
            return self._gathered(node, steps)
        return [Dimension()] if self._is_single(value) else None

    def _of_shape(self, node: ir.Node) -> Sizes | None:
        x = node.inputs[0]
        sizes = self._shape(x) if x is not None else None
        if sizes is None:
            return None
        end = node.attributes.get_int("end", len(sizes))
        return sizes[node.attributes.get_int("start", 0) : end]

    def _gathered(self, node: ir.Node, steps: int) -> Sizes | None:
        sizes, indices = (self._sizes(value, steps - 1) for value in node.inputs)
        if sizes is None or indices is None:
            return None
        chosen: Sizes = []
        for index in indices:
            if not isinstance(index, int) or not -len(sizes) <= index < len(sizes):
                return None
            chosen.append(sizes[index])
        return chosen

    def _shape(self, value: ir.Value) -> Sizes | None:
        try:
            sizes = self._shapes.of(value)
        except Refusal:
            return None
        return [
            size if isinstance(size, int) else Dimension(value, axis, size)
            for axis, size in enumerate(sizes)
        ]

    def _is_single(self, value: ir.Value) -> bool:
        shape = self._shape(value)
        return shape is not None and (not shape or shape == [1])
