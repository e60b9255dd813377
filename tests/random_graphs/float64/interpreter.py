"""Runs a model in float64: its nodes, functions and branches, and BatchNormalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.random_graphs.float64.values import (
    OPERATORS,
    ROUNDINGS,
    Array,
    Attributes,
    Known,
    Site,
    along,
    computed,
    given,
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One BatchNormalization that ran by the statistics of the batch.

    Attributes:
        parameters: Origins of scale, bias, moving mean and moving variance.
        label: The node's scope and its name, or its operator and first output.
        batch: Mean and variance of the batch.
        old: Moving mean and variance before it.
        momentum: Share of the old ones that stays.
    """

    parameters: tuple[str, ...]
    label: str
    batch: tuple[Known, Known]
    old: tuple[Known, Known]
    momentum: float

    def next(self, old: Known, index: int) -> Known:
        """Return moving mean (0) or variance (1) after the batch, in the type of `old`."""
        batch = self.batch[index]
        return Known(
            old.value * self.momentum + batch.value * (1 - self.momentum),
            old.dtype,
            old.size + batch.size,
            max(old.error, batch.error) + ROUNDINGS * (old.unit + computed(old)),
        )


@dataclasses.dataclass
class Interpreter:
    """Runs a model.

    Attributes:
        model: What is run.
        trains: Whether a BatchNormalization normalizes by the batch, by its label and what the file
            says.
        layers: Those that did, in order.
    """

    model: onnx.ModelProto
    trains: Callable[[str, bool], bool] = lambda _, said: said
    layers: list[Layer] = dataclasses.field(default_factory=list)
    _calls: int = 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Known]:
        """Return the outputs of the model."""
        graph = self.model.graph
        values = {**_initializers(graph), **{n: given(array, n) for n, array in feeds.items()}}
        self._calls = 0
        self._nodes(graph.node, values, _opset(self.model.opset_import), "")
        return {output.name: values[output.name] for output in graph.output}

    def _nodes(
        self, nodes: Sequence[onnx.NodeProto], values: dict[str, Known], opset: int, scope: str
    ) -> None:
        for node in nodes:
            for name, known in zip(
                node.output, self._node(node, values, opset, scope), strict=False
            ):
                values[name] = dataclasses.replace(known, origin=f"{scope}{name}")

    def _node(
        self, node: onnx.NodeProto, values: Mapping[str, Known], opset: int, scope: str
    ) -> Sequence[Known]:
        inputs = [values.get(name) for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for function in self.model.functions:
            if (function.domain, function.name) == (node.domain, node.op_type):
                return self._call(function, inputs)
        assert node.domain in ("", "ai.onnx"), node.domain
        if node.op_type == "If":
            assert inputs[0] is not None
            branch = attributes["then_branch" if inputs[0].value else "else_branch"]
            inner = {**values, **_initializers(branch)}
            self._nodes(branch.node, inner, opset, f"{branch.name}: ")
            return [inner[output.name] for output in branch.output]
        if node.op_type == "BatchNormalization":
            return self._batchnorm(node, inputs, attributes, opset, scope)
        found = OPERATORS[node.op_type](Site(attributes, opset, len(node.output)), *inputs)
        return [found] if isinstance(found, Known) else found

    def _call(self, function: onnx.FunctionProto, inputs: Sequence[Known | None]) -> list[Known]:
        values = {n: v for n, v in zip(function.input, inputs, strict=False) if v is not None}
        self._calls += 1
        scope = f"call {self._calls}: "
        self._nodes(function.node, values, _opset(function.opset_import), scope)
        return [values[name] for name in function.output]

    def _batchnorm(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Known | None],
        attributes: Attributes,
        opset: int,
        scope: str,
    ) -> list[Known]:
        x, scale, bias, mean, var = (known for known in inputs if known is not None)
        epsilon = float(np.float32(attributes.get("epsilon", 1e-5)))
        momentum = float(np.float32(attributes.get("momentum", 0.9)))
        said = bool(attributes.get("training_mode", 0))
        if opset < 14:
            said = any(node.output[1:])
        label = scope + (node.name or f"{node.op_type}({node.output[0]})")
        if not self.trains(label, said):
            y = _normalized(x, scale, bias, mean, var, epsilon)
            return [y, mean, var, mean, var]
        batch = _measured(x)
        origins = tuple(known.origin for known in (scale, bias, mean, var))
        layer = Layer(origins, label, batch, (mean, var), momentum)
        self.layers.append(layer)
        following = [layer.next(old, index) for index, old in enumerate(layer.old)]
        y = _normalized_by_batch(x, scale, bias, batch, epsilon)
        return [y, *following, *batch]


def _measured(x: Known) -> tuple[Known, Known]:
    """Return mean and variance of the batch: dv <= 4 s dx + dx ** 2."""
    others = tuple(axis for axis in range(x.value.ndim) if axis != 1)
    mean, var, size = x.value.mean(others), x.value.var(others), x.size.max(others)
    error = x.error + (x.value.size / max(len(mean), 1) + ROUNDINGS) * computed(x)
    spread = np.maximum(var, 4 * np.sqrt(var) * size) + error * size**2
    return Known(mean, x.dtype, size, error), Known(var, x.dtype, spread, error)


def _initializers(graph: onnx.GraphProto) -> dict[str, Known]:
    return {t.name: given(numpy_helper.to_array(t), t.name) for t in graph.initializer}


def _opset(imports: Sequence[onnx.OperatorSetIdProto]) -> int:
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 1)


def _normalized(
    x: Known, scale: Known, bias: Known, mean: Known, var: Known, epsilon: float
) -> Known:
    rank = x.value.ndim
    with np.errstate(all="ignore"):
        factor = along(scale.value / np.sqrt(var.value + epsilon), rank)
    centre, shift = along(mean.value, rank), along(bias.value, rank)
    constants = max(known.error for known in (scale, bias, mean, var))
    return Known(
        (x.value - centre) * factor + shift,
        x.dtype,
        (x.size + np.abs(centre)) * np.abs(factor) + np.abs(shift),
        x.error + 2 * constants + 2 * ROUNDINGS * computed(x) + ROUNDINGS * x.unit,
    )


def _normalized_by_batch(
    x: Known, scale: Known, bias: Known, batch: tuple[Known, Known], epsilon: float
) -> Known:
    """A mean and a deviation err as the elements do: dy <= 2 |scale| / s (1 + |y'|) dx."""
    rank = x.value.ndim
    mean, var = (known.value for known in batch)
    others = tuple(axis for axis in range(rank) if axis != 1)
    deviation = along(np.sqrt(var + epsilon), rank)
    factor, shift = along(scale.value, rank), along(bias.value, rank)
    with np.errstate(all="ignore"):
        standard = (x.value - along(mean, rank)) / deviation
        reach = x.size.max(others, keepdims=True) / deviation
    terms = x.value.size / max(len(mean), 1)
    return Known(
        standard * factor + shift,
        x.dtype,
        2 * np.abs(factor) * reach * (1 + np.abs(standard)) + np.abs(shift),
        x.error + (terms + 2 * ROUNDINGS) * computed(x) + ROUNDINGS * x.unit,
    )
