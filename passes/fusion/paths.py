"""The way from a normalization back to the weights that made its input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import batchnorm
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import constants, graphs
from syncbn_convert.passes.fusion.affine import (
    CallRefusal,
    ChannelAffine,
    Float64,
    MapRefusal,
    Refusal,
    constant_array,
    of_batchnorm,
)
from syncbn_convert.passes.fusion.known_shapes import Shapes, Size

_FIRST_OPSET_OF_DROPOUT_MODE = 12


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where a way ends.

    Attributes:
        node: The node whose weights are to take the affine map.
        value: Its output.
        axis: Channel axis of that output.
        affine: What has to happen to it.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    affine: ChannelAffine


@dataclasses.dataclass
class Way:
    """What was found on the way.

    Attributes:
        leaves: Its ends; several after a Concat.
        absorbed: Affine nodes on it and Identity, which go, each with the input that takes its
            place.
        passed: Values on it, from the end to where they are made.
    """

    leaves: list[Leaf] = dataclasses.field(default_factory=list)
    absorbed: list[tuple[ir.Node, ir.Value]] = dataclasses.field(default_factory=list)
    passed: list[ir.Value] = dataclasses.field(default_factory=list)


Step = tuple[ir.Value, int, ChannelAffine]
DeadEnds = dict[tuple[int, int], str]
"""Why no way leads on, by id of a value and its channel axis."""


class Walker:
    """Walks back over nodes that an affine map per channel commutes with.

    Args:
        model: The model.
        shapes: Its shapes.
        opset: Of the nodes' graph.
        ends: Operators that are ends.
        dead_ends: Of earlier walks to the same ends, in a model that has not changed since; it is
            added to. Without it, a long run of nodes that ends nowhere is walked once from each.
    """

    def __init__(
        self,
        model: ir.Model,
        shapes: Shapes,
        opset: int,
        ends: frozenset[str],
        dead_ends: DeadEnds,
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._opset = opset
        self._ends = ends
        self._dead_ends = dead_ends

    def walk(self, value: ir.Value | None, axis: int, affine: ChannelAffine) -> Way:
        """Return the way back from `value`, which `affine` over `axis` is applied to.

        Raises:
            Refusal: if it ends at something that cannot take the map.
        """
        way = Way()
        passed: list[tuple[int, int]] = []
        try:
            while True:
                passed.append((id(value), axis))
                node = self._maker(value, axis)
                assert value is not None
                way.passed.append(value)
                if node.op_type in self._ends:
                    way.leaves.append(Leaf(node, value, axis, affine))
                    return way
                if node.op_type == "Concat":
                    return self._through_concat(node, axis, affine, way)
                value, axis, affine = self._step(node, axis, affine, way)
        except MapRefusal:
            raise
        except Refusal as refusal:
            self._dead_ends.update(dict.fromkeys(passed, str(refusal)))
            raise

    def affine_of(self, node: ir.Node, axis: int) -> Step:
        """Return the input, its axis and the map of a node that is itself an affine map.

        Raises:
            Refusal: if it is none.
        """
        if batchnorm.is_batchnorm(node):
            if axis != 1 or node.inputs[0] is None:
                raise Refusal("a BatchNormalization on the way has another channel axis")
            return node.inputs[0], 1, of_batchnorm(BatchNorm(node, self._opset), self._model)
        return self._elementwise(node, axis)

    def _maker(self, value: ir.Value | None, axis: int) -> ir.Node:
        if (id(value), axis) in self._dead_ends:
            raise Refusal(self._dead_ends[id(value), axis])
        node = value.producer() if value is not None else None
        if value is None or node is None:
            raise Refusal("its input is made by no node")
        if node.domain not in graphs.STANDARD_DOMAINS:
            raise CallRefusal(node, "its input comes from")
        if value.is_graph_output():
            raise Refusal("a value on the way to its weights is a graph output")
        readers = graphs.readers(value)
        if len(readers) != 1:
            raise Refusal(f"a value on the way to its weights is read by {len(readers)} nodes")
        if readers[0].graph is not node.graph:
            raise Refusal("a value on the way to its weights is read in another graph")
        return node

    def _step(self, node: ir.Node, axis: int, affine: ChannelAffine, way: Way) -> Step:
        if node.op_type in _NEUTRAL:
            before = node.inputs[0]
            if before is None:
                raise Refusal(f"{node.op_type} has no input")
            axis = _NEUTRAL[node.op_type](self, node, axis, affine)
            if node.op_type == "Identity":
                way.absorbed.append((node, before))
            return before, axis, affine
        if node.op_type in _ELEMENTWISE or batchnorm.is_batchnorm(node):
            before, axis, first = self.affine_of(node, axis)
            way.absorbed.append((node, before))
            return before, axis, affine.after(first)
        raise Refusal(f"its input comes from {node.op_type}")

    def _through_concat(self, node: ir.Node, axis: int, affine: ChannelAffine, way: Way) -> Way:
        rank = self._shapes.rank(node.outputs[0])
        if node.attributes["axis"].as_int() % rank != axis:
            raise Refusal("Concat on the way joins another axis than the channels")
        start = 0
        for branch in node.inputs:
            size = self._shapes.of(branch)[axis] if branch is not None else None
            if not isinstance(size, int):
                raise Refusal("a number of channels that Concat joins is not known")
            found = self.walk(branch, axis, affine.part(start, start + size))
            way.leaves += found.leaves
            way.absorbed += found.absorbed
            way.passed += found.passed
            start += size
        if affine.multiplier.size not in (1, start):
            raise MapRefusal(f"{affine.multiplier.size} channels meet {start}")
        return way

    def _elementwise(self, node: ir.Node, axis: int) -> Step:
        if self._opset < graphs.FIRST_OPSET_OF_NUMPY_BROADCASTING:
            raise Refusal(f"{node.op_type} of opset {self._opset} broadcasts otherwise")
        if node.op_type not in _ELEMENTWISE or len(node.inputs) != 2:
            raise Refusal(f"{node.op_type} is no affine map")
        for index, operand in reversed(list(enumerate(node.inputs))):
            if operand is None or constants.constant_tensor(operand, self._model) is None:
                continue
            other = node.inputs[1 - index]
            if other is None:
                break
            factor = self._per_channel(operand, other, axis)
            affine = _ELEMENTWISE[node.op_type](factor, index)
            if not (np.isfinite(affine.multiplier).all() and np.isfinite(affine.addend).all()):
                raise Refusal(f"the constant of {node.op_type} on the way is not finite")
            return other, axis, affine
        raise Refusal(f"{node.op_type} on the way has no constant operand")

    def _per_channel(self, constant: ir.Value, other: ir.Value, axis: int) -> Float64:
        """Return a constant as [C] or [1]; broadcasting must leave the other operand's shape."""
        values = constant_array(constant, self._model, "constant")
        if values.ndim == 0:
            return values.reshape(1)
        rank = self._shapes.rank(other)
        if values.ndim > rank:
            raise Refusal(f"'{constant.name}' has more axes than what it meets")
        shape = [1] * (rank - values.ndim) + list(values.shape)
        if any(size != 1 for index, size in enumerate(shape) if index != axis):
            raise Refusal(f"'{constant.name}' is not one value for each channel")
        return values.reshape(-1)

    def _pass(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        del node, affine
        return axis

    def _dropout(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        del affine
        if self._opset < graphs.FIRST_OPSET_OF_NUMPY_BROADCASTING:
            trains = node.attributes.get_int("is_test", 0) == 0
        else:
            mode = node.inputs[2] if len(node.inputs) > 2 else None
            trains = mode is not None
            if mode is not None:
                tensor = constants.constant_tensor(mode, self._model)
                trains = tensor is None or bool(tensor.numpy().any())
        if trains:
            raise Refusal("Dropout on the way is in training mode")
        return axis

    def _transpose(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        del affine
        rank = self._shapes.rank(node.outputs[0])
        perm = node.attributes.get_ints("perm", ()) or list(reversed(range(rank)))
        if axis >= len(perm):
            raise Refusal("Transpose on the way makes no channel axis")
        return int(perm[axis])

    def _pool(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        if axis != 1:
            raise Refusal(f"{node.op_type} on the way has another channel axis")
        if node.op_type == "GlobalAveragePool" or not affine.shifts:
            return axis
        padded = any(node.attributes.get_ints("pads", ()))
        auto = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        ceil = node.attributes.get_int("ceil_mode", 0) != 0
        if node.attributes.get_int("count_include_pad", 0) and (padded or auto or ceil):
            raise MapRefusal("AveragePool on the way counts its padding")
        return axis

    def _squeeze(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        del affine
        rank = self._shapes.rank(node.inputs[0]) if node.inputs[0] is not None else 0
        removed = self._axes(node, rank)
        kept = [i for i in range(rank) if i not in removed]
        if axis >= len(kept):
            raise Refusal("Squeeze on the way leaves no channel axis")
        return kept[axis]

    def _unsqueeze(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        del affine
        rank = self._shapes.rank(node.outputs[0])
        added = self._axes(node, rank)
        if axis in added:
            raise Refusal("Unsqueeze on the way makes the channel axis")
        return axis - sum(other < axis for other in added)

    def _axes(self, node: ir.Node, rank: int) -> list[int]:
        axes: Sequence[int] | None = node.attributes.get_ints("axes", ()) or None
        if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
            tensor = constants.constant_tensor(node.inputs[1], self._model)
            axes = tensor.numpy().tolist() if tensor is not None else None
        if axes is None:
            raise Refusal(f"the axes of {node.op_type} on the way are not known")
        return [axis % rank for axis in axes]

    def _reshape(self, node: ir.Node, axis: int, affine: ChannelAffine) -> int:
        """Return the axis where sizes before the channels stay, and so do the channels."""
        del affine
        before = self._shapes.of(node.inputs[0]) if node.inputs[0] is not None else []
        after = self._shapes.of(node.outputs[0])
        moved = _axis_among_ones(before, after, axis)
        if moved is not None:
            return moved
        known = axis < min(len(before), len(after)) and isinstance(before[axis], int)
        if not known or before[axis] != after[axis]:
            raise Refusal(f"{node.op_type} on the way does not keep the channels")
        same_prefix = all(
            one is not None and one == other
            for one, other in zip(before[:axis], after[:axis], strict=True)
        )
        tails = [_product(sizes[axis + 1 :]) for sizes in (before, after)]
        same_tail = tails[0] is not None and tails[0] == tails[1]
        if not (same_prefix or (axis == 1 and same_tail)):
            raise Refusal(f"{node.op_type} on the way may not keep the channels")
        return axis


def _axis_among_ones(before: Sequence[Size], after: Sequence[Size], axis: int) -> int | None:
    """Return where the channels were, if a Reshape only moves sizes of 1 behind the samples."""
    kept = [[i for i, size in enumerate(sizes) if i and size != 1] for sizes in (before, after)]
    sizes = [[shape[i] for i in axes] for shape, axes in zip((before, after), kept, strict=True)]
    if axis not in kept[1] or sizes[0] != sizes[1]:
        return None
    if not all(isinstance(size, int) for size in sizes[0]):
        return None
    return kept[0][kept[1].index(axis)]


def _product(sizes: Sequence[Size]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _scaled(factor: Float64, index: int) -> ChannelAffine:
    del index
    return ChannelAffine(factor, np.zeros_like(factor))


def _divided(factor: Float64, index: int) -> ChannelAffine:
    if index == 0:
        raise Refusal("Div on the way divides by its input")
    with np.errstate(all="ignore"):
        return ChannelAffine(1.0 / factor, np.zeros_like(factor))


def _shifted(factor: Float64, index: int) -> ChannelAffine:
    del index
    return ChannelAffine(np.ones_like(factor), factor)


def _subtracted(factor: Float64, index: int) -> ChannelAffine:
    sign = -1.0 if index == 0 else 1.0
    return ChannelAffine(np.full_like(factor, sign), -sign * factor)


_ELEMENTWISE = {"Mul": _scaled, "Div": _divided, "Add": _shifted, "Sub": _subtracted}
ELEMENTWISE = frozenset(_ELEMENTWISE)
_NEUTRAL: dict[str, Callable[[Walker, ir.Node, int, ChannelAffine], int]] = {
    "Identity": Walker._pass,
    "Dropout": Walker._dropout,
    "Transpose": Walker._transpose,
    "AveragePool": Walker._pool,
    "GlobalAveragePool": Walker._pool,
    "Squeeze": Walker._squeeze,
    "Unsqueeze": Walker._unsqueeze,
    "Reshape": Walker._reshape,
    "Flatten": Walker._reshape,
}
