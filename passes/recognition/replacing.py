"""BatchNormalization in the place of a match."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import batchnorm
from syncbn_convert.form.batchnorm import PARAMETER_ROLES
from syncbn_convert.graph import constants, graphs
from syncbn_convert.passes.fusion.weights import remove_unused
from syncbn_convert.passes.recognition.matching import Match
from syncbn_convert.passes.recognition.parameters import Float64, constant_values
from syncbn_convert.passes.recognition.roles import Parameter
from syncbn_convert.passes.recognition.transposes import sink

_NAMES = dict(
    zip(PARAMETER_ROLES, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True)
)
_PART = re.compile(r"/(batchnorm|moments)(/.*)?$")
"""What TensorFlow appends to the name of a layer."""
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

State = tuple[ir.Value, ir.Value]


class Replacer:
    """Puts nodes in the places of matches.

    Args:
        model: Changed in place; of an opset and IR version that the training form needs.
        momentum: Of the nodes; None is ONNX's default.
        matches: All that will be replaced.
    """

    def __init__(self, model: ir.Model, momentum: float | None, matches: list[Match]) -> None:
        self._model = model
        self._momentum = momentum
        self._names = graphs.Names(model)
        self._interiors = {match.y: set(match.interior) for match in matches}
        self._states: dict[tuple[object, ...], State] = {}
        self._transposes: list[ir.Node] = []
        self._results: dict[ir.Value, ir.Value] = {}

    def replace(self, match: Match) -> str:
        """Replace a match; return the name of the node."""
        graph, last = self._model.graph, match.y.producer()
        assert last is not None
        scope = self._names.node(layer_name(match))
        x, order = self._results.get(match.x, match.x), list(match.order)
        made: list[ir.Node] = []
        if match.axis != 1:
            others = [axis for axis in range(1, match.rank) if axis != match.axis]
            there = [0, match.axis, *others]
            made.append(self._transpose(x, there, f"{scope}/channels_first"))
            x, order = made[-1].outputs[0], [there.index(axis) for axis in order]
        parameters = self._parameters(match, scope, last)
        _, epsilon = constant_values(match, self._model)
        node = ir.node(
            batchnorm.OP_TYPE,
            [x, *parameters],
            {"epsilon": epsilon, **({"momentum": self._momentum} if self._momentum else {})},
            name=scope,
        )
        if match.roles.of_batch:
            node.attributes.add(ir.AttrInt64("training_mode", 1))
            node.resize_outputs(3)
            for output, state in zip(node.outputs[1:], parameters[2:], strict=True):
                output.name = self._names.value(f"{state.name}.next")
                output.type, output.shape = state.type, state.shape
        made.append(node)
        y = node.outputs[0]
        y.type = ir.TensorType(match.dtype)
        if order != list(range(match.rank)):
            y.name = self._names.value(f"{match.y.name}/normalized")
            made.append(self._transpose(y, order, f"{scope}/channels_back"))
        graph.insert_before(last, made)
        self._hand_over(match, made[-1].outputs[0])
        return scope

    def finish(self) -> None:
        """Move the Transposes that were made on."""
        if self._transposes:
            sink(self._model, self._transposes)

    def _hand_over(self, match: Match, result: ir.Value) -> None:
        y = match.y
        result.type, result.shape = ir.TensorType(match.dtype), y.shape
        name, y.name = y.name, self._names.value(f"{y.name}/replaced")
        result.name = name
        y.replace_all_uses_with(result, replace_graph_outputs=True)
        self._results[y] = result
        remove_unused(y)

    def _transpose(self, value: ir.Value, order: list[int], name: str) -> ir.Node:
        node = ir.node("Transpose", [value], {"perm": order}, name=self._names.node(name))
        node.outputs[0].name = self._names.value(name)
        node.outputs[0].type = value.type
        self._transposes.append(node)
        return node

    def _parameters(self, match: Match, scope: str, before: ir.Node) -> list[ir.Value]:
        values, _ = constant_values(match, self._model)
        roles = match.roles
        found = [
            self._given(roles.scale, match, scope, "scale", values["scale"])
            or self._neutral(values["scale"], match, scope, "scale", before),
            self._given(roles.bias, match, scope, "B", values["B"])
            or self._neutral(values["B"], match, scope, "B", before),
        ]
        if roles.of_batch:
            return [*found, *self._state(match, scope, found)]
        for parameter, role in ((roles.mean, "input_mean"), (roles.variance, "input_var")):
            found.append(
                self._given(parameter, match, scope, role, values[role])
                or self._initializer(values[role], _wide(match.dtype), scope, role)
            )
        return found

    def _state(self, match: Match, scope: str, own: list[ir.Value]) -> State:
        """Return moving mean and variance, those of the layer where it is called twice."""
        key = (match.roles.epsilon, *own)
        if key not in self._states:
            dtype = _wide(match.dtype)
            self._states[key] = (
                self._initializer(np.zeros(match.channels), dtype, scope, "input_mean"),
                self._initializer(np.ones(match.channels), dtype, scope, "input_var"),
            )
        return self._states[key]

    def _given(
        self,
        parameter: Parameter | None,
        match: Match,
        scope: str,
        role: str,
        values: Float64,
    ) -> ir.Value | None:
        """Return a parameter [C]: the initializer itself, or one of its own for this match.

        An initializer whose values are all equal may have been merged with that of another layer.
        """
        if parameter is None:
            return None
        value = parameter.value
        tensor = constants.constant_tensor(value, self._model)
        assert tensor is not None
        plain = value.is_initializer() and len(tensor.shape) == 1
        same = parameter.power == parameter.sign == 1
        readers = {usage.node for usage in value.uses()}
        own = readers <= self._interiors[match.y] or bool(np.ptp(values) > 0)
        if plain and same and own:
            return value
        return self._initializer(values, tensor.dtype, scope, role)

    def _neutral(
        self, values: Float64, match: Match, scope: str, role: str, before: ir.Node
    ) -> ir.Value:
        """Return a Constant, which nothing trains."""
        assert isinstance(before.graph, ir.Graph)
        name = self._names.value(f"{scope}/{_NAMES[role]}")
        tensor = ir.tensor(values.astype(match.dtype.numpy()), name=name, dtype=match.dtype)
        node = ir.node("Constant", [], {"value": tensor}, name=self._names.node(name))
        output = node.outputs[0]
        output.name, output.type = name, ir.TensorType(match.dtype)
        output.shape = ir.Shape([match.channels])
        before.graph.insert_before(before, node)
        return output

    def _initializer(self, values: Float64, dtype: ir.DataType, scope: str, role: str) -> ir.Value:
        name = self._names.value(f"{scope}/{_NAMES[role]}")
        value = ir.Value(
            name=name,
            type=ir.TensorType(dtype),
            shape=ir.Shape(values.shape),
            const_value=ir.tensor(values.astype(dtype.numpy()), name=name, dtype=dtype),
        )
        self._model.graph.register_initializer(value)
        return value


def _wide(dtype: ir.DataType) -> ir.DataType:
    """Return the type of moving statistics: float32 for half types."""
    return ir.DataType.FLOAT if dtype in _NARROW else dtype


def layer_name(match: Match) -> str:
    """Return the layer's name: what the names of its nodes begin with."""
    names = [node.name for node in match.interior if node.name and "/" in node.name]
    parts = [name for name in names if _PART.search(name)]
    if parts:
        return _PART.sub("", parts[0])
    return _common_folder(names) or graphs.label(match.interior[0])


def _common_folder(names: Iterable[str]) -> str:
    folders = [name.rpartition("/")[0] for name in names]
    if not folders or not all(folders):
        return ""
    return os.path.commonpath(folders)
