"""A model's own loss, on several replicas what it is on one.

What the loss takes of the samples by a sum or a mean over all of them is summed over the replicas,
in one AllReduce; what follows is computed from these sums, alike on every replica. A loss that
looks at the samples otherwise holds on one replica alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import constants, graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.graph.value_types import inferred

_DOUBLE, _INT64 = ir.DataType.DOUBLE, ir.DataType.INT64
_CLASSIFYING = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
_REDUCING = ("ReduceSum", "ReduceMean")
# fmt: off
_OF_NUMBERS = frozenset((
    "Abs", "Add", "Cast", "Clip", "Concat", "Cos", "Div", "Exp", "Expand", "Flatten", "Gather",
    "HardSigmoid", "Identity", "Log", "Max", "Mean", "Min", "Mul", "Neg", "Pow", "Reciprocal",
    "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Sin", "Softplus", "Sqrt",
    "Squeeze", "Sub", "Sum", "Tanh", "Unsqueeze", "Where",
))
# fmt: on
"""Operators that may stand between sums over the samples and the loss."""


class NotOverReplicasError(Exception):
    """The loss looks at the samples otherwise than by sums and means over all of them."""


@dataclasses.dataclass
class OwnLoss:
    """The parts of a loss that are summed over the replicas, and what follows.

    Attributes:
        parts: Sums of this replica, each float64 [1].
        follow: Writes the loss from the sums over all replicas, in the same order.
    """

    parts: list[ir.Value]
    follow: _Follower


def take_apart(model: ir.Model, loss: ir.Value, tape: Tape) -> OwnLoss:
    """Find what a loss sums up over the samples, and write the sums of this replica.

    Raises:
        NotOverReplicasError: naming the node that looks at the samples otherwise.
    """
    follower = _Follower(model, tape)
    follower.find(loss)
    return OwnLoss(follower.write_parts(), follower)


class _Follower:
    """Writes a loss again, from sums over all replicas."""

    def __init__(self, model: ir.Model, tape: Tape) -> None:
        self._model = model
        self._tape = tape
        self._moving = _dependent(model)
        self._types: dict[ir.Value, ir.Value] | None = None
        self._sums: dict[ir.Value, tuple[int, bool]] = {}
        self._order: list[ir.Value] = []
        self._copies: dict[ir.Value, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._seen: set[ir.Value] = set()
        self._loss: ir.Value | None = None
        self._count = 0

    def find(self, loss: ir.Value) -> None:
        """Find the nodes where the samples are summed up."""
        self._loss = loss
        self._visit(loss)

    def _visit(self, value: ir.Value) -> None:
        if value not in self._moving or value in self._seen:
            return
        self._seen.add(value)
        node = value.producer()
        if node is None:
            raise NotOverReplicasError(f"input '{value.name}' is no sum over the samples")
        if self._sums_up(node, value):
            self._order.append(value)
            return
        if node.op_type not in _OF_NUMBERS or node.domain not in graphs.STANDARD_DOMAINS:
            raise NotOverReplicasError(
                f"node '{graphs.label(node)}' ({node.op_type}) is no sum or mean over all samples"
            )
        for source in node.inputs:
            if source is not None:
                self._visit(source)
        self._nodes.append(node)

    def _sums_up(self, node: ir.Node, value: ir.Value) -> bool:
        if node.op_type in _CLASSIFYING:
            return node is value.producer() and value.index() == 0 and self._reduces(node)
        source = node.inputs[0] if node.inputs else None
        if source is None or source not in self._moving:
            return False
        if node.op_type in _REDUCING:
            return not self._is_number(source) and self._takes_all(node, source)
        if node.op_type == "Size":
            return True
        if node.op_type == "Gather":
            shape = source.producer()
            index = node.inputs[1]
            place = None if index is None else constants.constant_tensor(index, self._model)
            first = place is not None and place.size == 1 and not int(place.numpy().reshape(()))
            return shape is not None and shape.op_type == "Shape" and first
        return False

    @staticmethod
    def _reduces(node: ir.Node) -> bool:
        return node.attributes.get_string("reduction", "mean") in ("mean", "sum")

    def _is_number(self, value: ir.Value) -> bool:
        shape = self._shape_of(value)
        return shape is not None and all(size == 1 for size in shape)

    def _shape_of(self, value: ir.Value) -> ir.Shape | None:
        if value.shape is not None:
            return value.shape
        if self._types is None:
            self._types = inferred(self._model)
        known = self._types.get(value)
        return None if known is None else known.shape

    def _takes_all(self, node: ir.Node, source: ir.Value) -> bool:
        given = node.attributes.get("axes")
        axes = None if given is None else list(given.as_ints())
        if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
            tensor = constants.constant_tensor(node.inputs[1], self._model)
            if tensor is None:
                return False
            axes = [int(at) for at in tensor.numpy().reshape(-1)]
        if not axes:
            return not node.attributes.get_int("noop_with_empty_axes", 0)
        shape = self._shape_of(source)
        return shape is not None and {at % len(shape) for at in axes} == set(range(len(shape)))

    def write_parts(self) -> list[ir.Value]:
        """Write the sums of this replica, and keep which are whose."""
        parts: list[ir.Value] = []
        for value in self._order:
            node = value.producer()
            assert node is not None
            total, divisor = self._parts_of(node, value)
            self._sums[value] = len(parts), divisor is not None
            parts.append(total)
            if divisor is not None:
                parts.append(divisor)
        return parts

    def _parts_of(self, node: ir.Node, value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        if node.op_type in _CLASSIFYING:
            return self._classified(node)
        if node.op_type in ("Size", "Gather"):
            return self._wide(value), None
        source = node.inputs[0]
        assert source is not None
        total = self._summed(source)
        if node.op_type == "ReduceSum":
            return total, None
        return total, self._wide(self._tape.op("Size", source))

    def _classified(self, node: ir.Node) -> tuple[ir.Value, ir.Value | None]:
        tape = self._tape
        ignored = node.attributes.get_int("ignore_index", None)
        each = tape.op(node.op_type, *node.inputs, reduction="none", ignore_index=ignored)
        total = self._summed(each)
        if node.attributes.get_string("reduction", "mean") == "sum":
            return total, None
        label = tape.op("Cast", node.inputs[1], to=int(_INT64))
        weights = node.inputs[2] if len(node.inputs) > 2 else None
        if ignored is None and weights is None:
            return total, self._wide(tape.op("Size", label))
        place, counts = label, None
        if ignored is not None:
            same = tape.op("Equal", label, tape.constant(np.array(ignored), _INT64))
            place = tape.op("Where", same, tape.constant(np.array(0), _INT64), label)
            counts = tape.op("Cast", tape.op("Not", same), to=int(_DOUBLE))
        if weights is None:
            assert counts is not None
            return total, self._summed(counts)
        counted = tape.op("Cast", tape.op("Gather", weights, place), to=int(_DOUBLE))
        return total, self._summed(counted if counts is None else tape.op("Mul", counted, counts))

    def _summed(self, value: ir.Value) -> ir.Value:
        tape = self._tape
        flat = tape.op("Reshape", tape.op("Cast", value, to=int(_DOUBLE)), tape.ints(-1))
        return tape.op("ReduceSum", flat, tape.ints(0), keepdims=1)

    def _wide(self, value: ir.Value) -> ir.Value:
        wide = self._tape.op("Cast", value, to=int(_DOUBLE))
        return self._tape.op("Reshape", wide, self._tape.ints(1))

    def write_loss(self, sums: Sequence[ir.Value]) -> ir.Value:
        """Write the loss from the sums over all replicas."""
        tape = self._tape
        for value, (place, divided) in self._sums.items():
            total = sums[place]
            if divided:
                total = tape.op("Div", total, at_least(tape, sums[place + 1]))
            number = tape.op("CastLike", total, value)
            self._copies[value] = tape.op("Reshape", number, tape.op("Shape", value))
        for node in self._nodes:
            inputs = [None if v is None else self._copies.get(v, v) for v in node.inputs]
            attributes = {key: attribute.value for key, attribute in node.attributes.items()}
            outputs = tape.ops(node.op_type, inputs, len(node.outputs), **attributes)
            for old, new in zip(node.outputs, outputs, strict=True):
                self._copies[old] = new
        assert self._loss is not None
        return self._copies.get(self._loss, self._loss)


def at_least(tape: Tape, divisor: ir.Value) -> ir.Value:
    """Return a divisor, 1 where it is 0."""
    zero, one = tape.constant(np.zeros(1), _DOUBLE), tape.constant(np.ones(1), _DOUBLE)
    return tape.op("Where", tape.op("Greater", divisor, zero), divisor, one)


def _dependent(model: ir.Model) -> set[ir.Value]:
    """Return the values that depend on what is fed."""
    found = {value for value in model.graph.inputs if not value.is_initializer()}
    for node in model.graph:
        read = (value for value in node.inputs if value is not None)
        inner = (
            value
            for _, body in graphs.bodies(node)
            for within in body.all_nodes()
            for value in within.inputs
            if value is not None
        )
        if any(value in found for value in (*read, *inner)):
            found.update(node.outputs)
    return found
