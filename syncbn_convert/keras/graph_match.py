"""Two models of one architecture: which weight of the one is which of the other.

Both are inference forms that came from one framework by one way, before and after a training. Names
of weights are those of the framework's variables and have to be equal; names of nodes and of what
is calculated are not compared, as they tell of the name of the whole model, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm
from syncbn_convert.graph import graphs
from syncbn_convert.graph.constants import is_named_constant

_WITHOUT_EFFECT = {batchnorm.OP_TYPE: frozenset({"momentum", "training_mode"})}
"""Attributes, by operator, that say nothing about inference (both models are in that form)."""
_CURE = "take a model that was imported from the same Keras model, and not fused since"


@dataclasses.dataclass(frozen=True)
class Named:
    """A model and what messages call it."""

    model: ir.Model
    name: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A weight in both models; equal in name (constants excepted), element type and shape."""

    first: ir.Value
    second: ir.Value

    @property
    def is_constant(self) -> bool:
        """Whether it is no variable of the framework."""
        return is_named_constant(self.first)

    @property
    def tensors(self) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
        """The values."""
        first, second = _tensor(self.first), _tensor(self.second)
        assert first is not None
        assert second is not None
        return first, second

    @property
    def equal(self) -> bool:
        """Whether the values are equal, bit by bit."""
        first, second = self.tensors
        return first.tobytes() == second.tobytes()


def match_weights(first: Named, second: Named) -> list[Pair]:
    """Return the weights of two models in inference form, in the order of the first.

    Types of inputs and outputs, names, element types and shapes of weights, operators, attributes
    and connections have to be equal. Parameters that a layer does not have are Constant nodes or
    initializers, and equal.

    Raises:
        ConversionError: naming the first difference.
    """
    _check_interface(first, second)
    _check_weights(first, second)
    walk = _Walk(first, second)
    walk.run()
    order = {name: at for at, name in enumerate(first.model.graph.initializers)}
    return sorted(walk.pairs, key=lambda pair: order.get(str(pair.first.name), len(order)))


def _check_interface(first: Named, second: Named) -> None:
    for kind in ("inputs", "outputs"):
        sides = [list(getattr(named.model.graph, kind)) for named in (first, second)]
        if not _same_order(*sides):
            shown = [", ".join(map(_spec, side)) for side in sides]
            raise ConversionError(
                f"{first.name} has the {kind} {shown[0]}, but {second.name} has {shown[1]}; {_CURE}"
            )


def _same_order(first: Sequence[ir.Value], second: Sequence[ir.Value]) -> bool:
    """Whether values have the same types, and no name stands at another place.

    Keras numbers the inputs that the user did not name, so that names alone say little.
    """
    if list(map(_type, first)) != list(map(_type, second)):
        return False
    names, others = ([value.name for value in side] for side in (first, second))
    return all(
        name == other or (name not in others and other not in names)
        for name, other in zip(names, others, strict=True)
    )


def _check_weights(first: Named, second: Named) -> None:
    weights = [_weights(named.model.graph) for named in (first, second)]
    for (mine, theirs), (here, there) in zip(
        (weights, weights[::-1]), ((first, second), (second, first)), strict=True
    ):
        for name in mine:
            if name not in theirs and _constant(there.model.graph, name) is None:
                raise ConversionError(
                    f"weight '{name}' of {here.name} is not in {there.name}; {_CURE}"
                )
    for name, value in weights[0].items():
        other = weights[1].get(name)
        if other is not None and _type(value) != _type(other):
            raise ConversionError(
                f"weight '{name}' is {_type(value)} in {first.name}, but {_type(other)} in "
                f"{second.name}; {_CURE}"
            )


def _weights(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the variables by name, in the order in which the graph reads them."""
    read = (value for node in graph for value in node.inputs if value is not None)
    ordered = dict.fromkeys((*read, *graph.initializers.values()))
    return {
        str(value.name): value
        for value in ordered
        if value.is_initializer() and not is_named_constant(value)
    }


def _constant(graph: ir.Graph, name: str) -> ir.Node | None:
    constants = (node for node in graph if node.op_type == "Constant")
    return next((node for node in constants if node.outputs[0].name == name), None)


def _spec(value: ir.Value) -> str:
    return f"'{value.name}' {_type(value)}"


def _type(value: ir.Value) -> str:
    tensor = _tensor(value)
    dtype, shape = (value.dtype, value.shape) if tensor is None else (tensor.dtype, tensor.shape)
    sizes = "..." if shape is None else ",".join(map(str, shape)).replace("None", "?")
    return f"{'?' if dtype is None else str(dtype).lower()}[{sizes}]"


_Step = tuple[ir.Value | None, ir.Value | None, str]
"""A value in both models, and what reads it."""


class _Walk:
    """From the outputs to the inputs of two graphs at once, bodies included."""

    def __init__(self, first: Named, second: Named) -> None:
        self._names = first.name, second.name
        self._listed = tuple(
            set(named.model.graph.initializers.values()) for named in (first, second)
        )
        self.pairs: list[Pair] = []
        self._inputs: dict[ir.Value, ir.Value] = {}
        self._met: set[tuple[ir.Value, ir.Value]] = set()
        self._pending: list[_Step] = []
        self._enter(first.model.graph, second.model.graph, "the outputs")

    def run(self) -> None:
        """Pair everything that the outputs are calculated from.

        Raises:
            ConversionError: naming the difference that is nearest to the outputs.
        """
        while self._pending:
            first, second, reader = self._pending.pop()
            if first is None or second is None:
                if first is not second:
                    raise self._difference(reader, "leaves out an input in only one of them")
                continue
            first, second = _before_identities(first), _before_identities(second)
            if (first, second) not in self._met:
                self._met.add((first, second))
                self._pair(first, second, reader)

    def _enter(self, first: ir.Graph, second: ir.Graph, reader: str) -> None:
        if len(first.inputs) != len(second.inputs) or len(first.outputs) != len(second.outputs):
            raise self._difference(reader, "has another number of inputs or outputs")
        self._inputs.update(zip(first.inputs, second.inputs, strict=True))
        self._push(first.outputs, second.outputs, reader)

    def _push(
        self, first: Sequence[ir.Value | None], second: Sequence[ir.Value | None], reader: str
    ) -> None:
        steps = [(*values, reader) for values in zip(first, second, strict=True)]
        self._pending += reversed(steps)

    def _pair(self, first: ir.Value, second: ir.Value, reader: str) -> None:
        if self._inputs.get(first) is second:
            return
        tensors = _tensor(first), _tensor(second)
        if tensors[0] is not None and tensors[1] is not None:
            self._pair_constants(first, second, reader)
            return
        node, other = first.producer(), second.producer()
        if node is None or other is None:
            raise self._difference(reader, f"reads '{first.name}' and '{second.name}'")
        if first.index() != second.index():
            raise self._difference(reader, "reads another output")
        self._pair_nodes(node, other)

    def _pair_constants(self, first: ir.Value, second: ir.Value, reader: str) -> None:
        if _type(first) != _type(second):
            raise self._difference(reader, f"reads {_spec(first)} and {_spec(second)}")
        pair = Pair(first, second)
        listed = first in self._listed[0], second in self._listed[1]
        if all(listed):
            variables = [
                None if is_named_constant(value) else value.name for value in (first, second)
            ]
            if variables[0] != variables[1]:
                raise self._difference(reader, f"reads '{first.name}' and '{second.name}'")
            self.pairs.append(pair)
        elif not pair.equal:
            raise self._difference(reader, f"reads other values as '{first.name}'")

    def _pair_nodes(self, first: ir.Node, second: ir.Node) -> None:
        label = f"node '{graphs.label(first)}'"
        if first.op_identifier() != second.op_identifier():
            raise self._difference(label, f"is {first.op_type} and {second.op_type}")
        if len(first.inputs) != len(second.inputs):
            raise self._difference(label, "has another number of inputs")
        attributes = _attributes(first), _attributes(second)
        for name in sorted(attributes[0].keys() | attributes[1].keys()):
            if attributes[0].get(name) != attributes[1].get(name):
                shown = [_shown(node.attributes.get(name)) for node in (first, second)]
                raise self._difference(label, f"has {name} {shown[0]} and {shown[1]}")
        for (_, body), (_, other) in zip(graphs.bodies(first), graphs.bodies(second), strict=True):
            self._enter(body, other, label)
        self._push(first.inputs, second.inputs, label)

    def _difference(self, where: str, what: str) -> ConversionError:
        return ConversionError(
            f"{self._names[0]} and {self._names[1]} differ: {where} {what}; {_CURE}"
        )


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the value of an initializer or of a Constant node."""
    return ir.convenience.get_const_tensor(value)


def _before_identities(value: ir.Value) -> ir.Value:
    """Return what is passed on: where exporters put Identity nodes varies from run to run."""
    node = value.producer()
    while node is not None and node.op_identifier() == ("", "Identity", ""):
        assert node.inputs[0] is not None
        value = node.inputs[0]
        node = value.producer()
    return value


def _attributes(node: ir.Node) -> dict[str, bytes]:
    """Return what says how a node calculates; of bodies, only that there is one."""
    without_effect = _WITHOUT_EFFECT.get(node.op_type, frozenset())
    bodies = {name for name, _ in graphs.bodies(node)}
    return {
        name: b"" if name in bodies else ir.serde.serialize_attribute(attribute).SerializeToString()
        for name, attribute in node.attributes.items()
        if name not in without_effect
    }


def _shown(attribute: ir.Attr | None) -> str:
    return "none" if attribute is None else str(attribute.value)
