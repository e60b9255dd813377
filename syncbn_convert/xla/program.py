"""An ONNX model as a pure function on arrays of JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs
from syncbn_convert.xla.operators import operator_of
from syncbn_convert.xla.sample_axes import Layout
from syncbn_convert.xla.scope import Scope, constant_of, function_of
from syncbn_convert.xla.traced_run import Run
from syncbn_convert.xla.translations import Array


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What a program returns.

    Attributes:
        outputs: By name.
        totals: Of each SyncBatchNormalization by its place in the graph: global count, mean and
            population variance, [2C + 1].
    """

    outputs: dict[str, Array]
    totals: dict[int, Array]


class Program:
    """The part of a model that some of its outputs need.

    Args:
        model: The model; it is read, and not to be changed while the program is used.
        outputs: Names of graph outputs.
        trained: Names of initializers that are arrays of the state in any case.

    Attributes:
        state: Names of the initializers that are passed; all others are constants.
        inputs: Names of the graph inputs that are needed.
        synchronized_nodes: Its SyncBatchNormalization nodes, in graph order.
        depth: Number of them on the longest way, which is the number of collectives.

    Raises:
        ConversionError: if an operator has no translation, or one that has to be known is trained.
    """

    def __init__(
        self, model: ir.Model, outputs: Sequence[str], trained: Collection[str] = ()
    ) -> None:
        self._model = model
        by_name = {str(value.name): value for value in model.graph.outputs}
        self._wanted = {name: by_name[name] for name in outputs}
        self._numbers = {id(node): index for index, (node, _, _) in enumerate(graphs.walk(model))}
        self._places = {id(node): i for i, node in enumerate(training_form.nodes(model))}
        needed = _needed(model, self._wanted.values())
        _check_operators(model, needed)
        self._stages = _stages(needed)
        self.synchronized_nodes = [node for node in needed if training_form.is_sync_batchnorm(node)]
        self.depth = sum(bool(synchronized) for _, synchronized in self._stages)
        read = {id(value) for node in needed for value in _operands(node)}
        read |= {id(value) for value in self._wanted.values()}
        known = _known_initializers(model, needed)
        self.state = []
        self._constants: dict[int, Any] = {}
        for name, value in model.graph.initializers.items():
            if id(value) not in read:
                continue
            if (_is_state(value) and id(value) not in known) or name in trained:
                if id(value) in known:
                    raise ConversionError(
                        f"initializer '{name}' is trained, but a shape depends on it, which XLA "
                        "has to know beforehand; freeze it"
                    )
                self.state.append(str(name))
            else:
                self._constants[id(value)] = constant_of(value)
        self.inputs = [
            str(value.name)
            for value in model.graph.inputs
            if id(value) in read and not value.is_initializer()
        ]
        self._values = {
            str(value.name): value
            for value in (*model.graph.initializers.values(), *model.graph.inputs)
        }

    def __call__(
        self, state: Mapping[str, Array], inputs: Mapping[str, Array], run: Run
    ) -> Evaluated:
        """Trace the program.

        Args:
            state: One array for each name of `state`.
            inputs: One array for each name of `inputs`, this replica's piece.
            run: What it is traced for.
        """
        scope = Scope(self._model, run, self._numbers)
        for identity, value in self._constants.items():
            scope.values[identity] = scope.native(value)
        for name in self.state:
            scope.values[id(self._values[name])] = state[name]
        for name in self.inputs:
            scope.values[id(self._values[name])] = inputs[name]
            if run.weights is not None:
                scope.layouts[id(self._values[name])] = Layout(0)
        totals: dict[int, Array] = {}
        for nodes, synchronized in self._stages:
            for node in nodes:
                scope.evaluate(node, graphs.opset_version(self._model), {})
            for group_size, group in synchronized.items():
                for node, total in scope.normalize(group, group_size):
                    totals[self._places[id(node)]] = total
        return Evaluated(
            {name: jnp.asarray(scope.read(value)) for name, value in self._wanted.items()}, totals
        )

    def arrays(self, names: Collection[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Return the model's own values of the state, or of some of it."""
        chosen = self.state if names is None else [name for name in self.state if name in names]
        return {name: constant_of(self._values[name]) for name in chosen}


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, what its bodies read included."""
    yield from (value for value in node.inputs if value is not None)
    for _, body in graphs.bodies(node):
        yield from body.outputs
        for inner in body:
            yield from _operands(inner)


def _needed(model: ir.Model, wanted: Collection[ir.Value]) -> list[ir.Node]:
    """Return the nodes of the main graph that outputs depend on, in its order."""
    found: set[int] = set()
    pending = list(wanted)
    while pending:
        node = pending.pop().producer()
        if node is None or id(node) in found:
            continue
        found.add(id(node))
        pending.extend(_operands(node))
    return [node for node in model.graph if id(node) in found]


def _check_operators(model: ir.Model, needed: Sequence[ir.Node]) -> None:
    pending, seen = list(needed), set()
    while pending:
        node = pending.pop(0)
        pending.extend(inner for _, body in graphs.bodies(node) for inner in body)
        function = function_of(model, node)
        if function is not None:
            if id(function) not in seen:
                seen.add(id(function))
                pending.extend(function)
        elif operator_of(node) is None and not training_form.is_sync_batchnorm(node):
            domain = "" if node.domain in graphs.STANDARD_DOMAINS else f"{node.domain}::"
            raise ConversionError(
                f"node '{graphs.label(node)}': the operator '{domain}{node.op_type}' has no "
                "translation to XLA; run the model on ONNX Runtime (--engine threads)"
            )


_Stage = tuple[list[ir.Node], dict[int, list[ir.Node]]]


def _stages(needed: Sequence[ir.Node]) -> list[_Stage]:
    """Return nodes by the number of SyncBatchNormalization before them on the longest way.

    Each stage has its other nodes, and then its SyncBatchNormalization nodes by group size, which
    do not depend on one another.
    """
    depth: dict[int, int] = {}
    stages: list[_Stage] = []
    for node in needed:
        level = max((depth.get(id(value), 0) for value in _operands(node)), default=0)
        while len(stages) <= level:
            stages.append(([], {}))
        others, synchronized = stages[level]
        is_synchronized = training_form.is_sync_batchnorm(node)
        if is_synchronized:
            size = node.attributes.get_int("group_size", 0)
            synchronized.setdefault(size, []).append(node)
        else:
            others.append(node)
        depth.update((id(output), level + is_synchronized) for output in node.outputs)
    return stages


def _known_initializers(model: ir.Model, needed: Sequence[ir.Node]) -> set[int]:
    """Return initializers on which something depends that has to be known beforehand."""
    pending: list[ir.Value] = []
    for node in _with_inner(model, needed):
        operator = operator_of(node)
        if operator is not None:
            pending += [
                value
                for index in operator.known
                if index < len(node.inputs) and (value := node.inputs[index]) is not None
            ]
    found: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in found:
            continue
        found.add(id(value))
        maker = value.producer()
        if maker is not None and maker.op_type not in ("Shape", "Size"):
            pending.extend(_operands(maker))
    return found


def _with_inner(model: ir.Model, nodes: Sequence[ir.Node]) -> Iterator[ir.Node]:
    for node in nodes:
        yield node
        for _, body in graphs.bodies(node):
            yield from _with_inner(model, list(body))


def _is_state(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype.is_floating_point() and len(tensor.shape) > 0
