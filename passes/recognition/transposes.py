"""Transposes around normalization, moved on over what works element by element, and cancelled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import constants, graphs
from syncbn_convert.passes.fusion.weights import remove_unused

_UNARY = frozenset(
    [
        *("Abs", "Cast", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid"),
        *("HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid"),
        *("Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    ]
)
_ELEMENTWISE = frozenset(["Add", "Div", "Max", "Min", "Mul", "Sub"])
_FIRST_OPSET_OF_PADS_INPUT = 11

Order = Sequence[int]


def sink(model: ir.Model, transposes: Iterable[ir.Node]) -> None:
    """Move Transposes behind activations, sums, pads and means as far as that makes them fewer.

    Args:
        model: Changed in place; its graph may become another object.
        transposes: Those to begin with.
    """
    chosen = {node.name for node in transposes}
    trial = graphs.clone(model)
    _Sinker(trial).run([node for node in trial.graph if node.name in chosen])
    if _count(trial) < _count(model):
        model.graph = trial.graph


def _count(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph)


class _Sinker:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = graphs.Names(model)
        self._opset = graphs.opset_version(model)
        self._pending: deque[ir.Node] = deque()

    def run(self, transposes: Iterable[ir.Node]) -> None:
        self._pending.extend(transposes)
        while self._pending:
            node = self._pending.popleft()
            if node.graph is not None:
                self._sink(node)

    def _sink(self, node: ir.Node) -> None:
        order, output = _order(node), node.outputs[0]
        for reader in dict.fromkeys(usage.node for usage in output.uses()):
            if reader.graph is not node.graph or reader.domain not in graphs.STANDARD_DOMAINS:
                continue
            if reader.op_type == "Transpose":
                self._compose(node, reader)
            elif len(reader.outputs) == 1 and output in reader.inputs:
                move = self._way_over(reader, order)
                if move is not None:
                    move(reader, order)
        remove_unused(output)

    def _compose(self, first: ir.Node, second: ir.Node) -> None:
        before = _order(first)
        own = _order(second) or reversed(range(len(before)))
        order, x, y = [before[axis] for axis in own], first.inputs[0], second.outputs[0]
        assert x is not None
        second.replace_input_with(0, x)
        second.attributes.add(ir.AttrInt64s("perm", order))
        if order == sorted(order) and not y.is_graph_output():
            y.replace_all_uses_with(x)
            remove_unused(y)
        elif order != sorted(order):
            self._pending.append(second)

    def _way_over(self, node: ir.Node, order: Order) -> Callable[[ir.Node, Order], None] | None:
        if node.op_type in _UNARY:
            return self._over_elements
        if node.op_type in _ELEMENTWISE:
            fits = all(self._fits(value, order) for value in node.inputs)
            return self._over_elements if fits else None
        if node.op_type == "Concat":
            fits = all(_is_moved_by(value, order) for value in node.inputs)
            return self._over_concat if fits else None
        if node.op_type == "Pad":
            return self._over_pad if self._pads(node) is not None else None
        if node.op_type == "ReduceMean" and self._reduced(node, order) is not None:
            return self._over_mean
        return None

    def _fits(self, value: ir.Value | None, order: Order) -> bool:
        """Whether an operand is moved alike, or is one number."""
        if value is None or _is_moved_by(value, order):
            return value is not None
        tensor = constants.constant_tensor(value, self._model)
        return tensor is not None and tensor.size == 1 and len(tensor.shape) <= len(order)

    def _over_elements(self, node: ir.Node, order: Order) -> None:
        for index, value in enumerate(node.inputs):
            if _is_moved_by(value, order):
                assert value is not None
                producer = value.producer()
                assert producer is not None
                node.replace_input_with(index, producer.inputs[0])
                remove_unused(value)
        self._add_behind(node, order)

    def _over_concat(self, node: ir.Node, order: Order) -> None:
        axis = node.attributes["axis"].as_int()
        node.attributes.add(ir.AttrInt64("axis", order[axis]))
        self._over_elements(node, order)

    def _over_pad(self, node: ir.Node, order: Order) -> None:
        pads = self._pads(node)
        assert pads is not None
        rank = len(order)
        moved = [0] * len(pads)
        for axis, source in enumerate(order):
            moved[source], moved[rank + source] = pads[axis], pads[rank + axis]
        old = node.inputs[1]
        node.replace_input_with(1, self._integers(moved, f"{graphs.label(node)}/pads"))
        if old is not None:
            remove_unused(old)
        self._over_elements(node, order)

    def _over_mean(self, node: ir.Node, order: Order) -> None:
        axes = self._reduced(node, order)
        assert axes is not None
        if "axes" in node.attributes:
            node.attributes.add(ir.AttrInt64s("axes", axes))
        else:
            node.replace_input_with(1, self._integers(axes, f"{graphs.label(node)}/axes"))
        if node.attributes.get_int("keepdims", 1):
            self._over_elements(node, order)
            return
        moved = node.inputs[0]
        assert moved is not None
        producer = moved.producer()
        assert producer is not None
        node.replace_input_with(0, producer.inputs[0])

    def _pads(self, node: ir.Node) -> list[int] | None:
        axes = node.inputs[3] if len(node.inputs) > 3 else None
        if self._opset < _FIRST_OPSET_OF_PADS_INPUT or axes is not None:
            return None
        return self._known(node.inputs[1])

    def _reduced(self, node: ir.Node, order: Order) -> list[int] | None:
        """Return the axes that a mean runs over before the Transpose; None where it has to stay."""
        if "axes" in node.attributes:
            axes: list[int] | None = list(node.attributes.get_ints("axes", ()))
        else:
            axes = self._known(node.inputs[1] if len(node.inputs) > 1 else None)
        if not axes:
            return None
        gone = {axis % len(order) for axis in axes}
        kept = [source for axis, source in enumerate(order) if axis not in gone]
        if not node.attributes.get_int("keepdims", 1) and kept != sorted(kept):
            return None
        return sorted(order[axis] for axis in gone)

    def _known(self, value: ir.Value | None) -> list[int] | None:
        tensor = constants.constant_tensor(value, self._model) if value is not None else None
        return [int(entry) for entry in tensor.numpy()] if tensor is not None else None

    def _integers(self, values: list[int], name: str) -> ir.Value:
        name = self._names.value(name)
        array = np.array(values, np.int64)
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        self._model.graph.register_initializer(value)
        return value

    def _add_behind(self, node: ir.Node, order: Order) -> None:
        y, graph = node.outputs[0], node.graph
        assert isinstance(graph, ir.Graph)
        name = self._names.node(f"{graphs.label(node)}/channels_back")
        made = ir.node("Transpose", [y], {"perm": list(order)}, name=name)
        result = made.outputs[0]
        result.type, result.shape = y.type, y.shape
        y.replace_all_uses_with(result, replace_graph_outputs=True)
        made.replace_input_with(0, y)
        y.name, result.name = self._names.value(f"{y.name}/channels_first"), y.name
        y.shape = None
        graph.insert_after(node, made)
        self._pending.append(made)


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", ()))


def _is_moved_by(value: ir.Value | None, order: Order) -> bool:
    node = value.producer() if value is not None else None
    return (
        node is not None
        and node.op_type == "Transpose"
        and node.domain in graphs.STANDARD_DOMAINS
        and _order(node) == list(order)
    )
