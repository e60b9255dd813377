"""Values for a traced graph: normalization layers for markers, initializers for variables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.form import provenance, weight_facts
from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.graph import constants, graphs
from syncbn_convert.keras.keras_layers import PARAMETERS, KerasLayer
from syncbn_convert.keras.keras_weights import UNTRAINED
from syncbn_convert.keras.markers import DOMAIN, MARKER, RANDOM_MARKER
from syncbn_convert.keras.tracing import Traced

Array = npt.NDArray[Any]

_NUMBERED = re.compile(r"(.+)__\d+(?::\d+)?")
_NEUTRAL = {"gamma": np.ones, "beta": np.zeros}


def bind(traced: Traced) -> ir.Model:
    """Return the model with every layer one BatchNormalization, named after the layer.

    A parameter that the layer does not have (`center=False`, `scale=False`) becomes a Constant,
    which nothing trains. Weights whose layout tf2onnx changes are stored in the new layout.
    """
    model = ir.serde.deserialize_model(traced.proto)
    _name_constants(model)
    _bind_variables(model, traced)
    _fold_layouts(model.graph)
    _number_names(model)
    _forget_sizes(model)
    names = graphs.Names(model)
    parameters: dict[int, list[ir.Value]] = {}
    for node in list(model.graph):
        if node.op_type == RANDOM_MARKER and node.domain == DOMAIN:
            _replace_random(node, traced.draws[node.attributes["layer"].as_int()], names)
        if node.op_type == MARKER and node.domain == DOMAIN:
            index = node.attributes["layer"].as_int()
            layer = traced.layers[index]
            if index not in parameters:
                parameters[index] = [_parameter(layer, name, node, names) for name in PARAMETERS]
            _replace(node, layer, parameters[index], names)
    _require_no_marker(model, traced)
    weight_facts.settle(model)
    weight_facts.remark(model, [*traced.remarks, *_silence_bodies(model, traced)])
    model.opset_imports.pop(DOMAIN, None)
    return model


def _require_no_marker(model: ir.Model, traced: Traced) -> None:
    """Refuse layers in bodies, which the layers of the main graph do not stand in.

    Raises:
        ValueError: naming the layer.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == MARKER and node.domain == DOMAIN:
            layer = traced.layers[node.attributes["layer"].as_int()]
            raise ValueError(
                f"layer '{layer.path}' is called inside a loop, as by TimeDistributed over an axis "
                "of unknown length"
            )


def _bind_variables(model: ir.Model, traced: Traced) -> None:
    graph = model.graph
    taken = graphs.used_names(model)
    for value in list(graph.inputs):
        name = str(value.name)
        if name in traced.variables:
            wanted, array = traced.variables[name]
            value.name = graphs.unique_name(wanted, taken)
            value.const_value = ir.tensor(array, name=value.name)
            weight_facts.attach(value, traced.weights[name])
            graphs.remove_from(graph.inputs, [value])
            if value.uses():
                graph.register_initializer(value)


def _fold_layouts(graph: ir.Graph) -> None:
    """Compute what only moves the elements of an initializer."""
    taken = set(graph.initializers)
    for node in list(graph):
        fold = _LAYOUTS.get(node.op_type)
        initializers = [value for value in node.inputs if value is not None]
        tensors = [value.const_value for value in initializers if value.const_value is not None]
        output = node.outputs[0]
        if fold is None or len(tensors) < len(initializers) or output.is_graph_output():
            continue
        source, array = initializers[0], fold(node, [tensor.numpy() for tensor in tensors])
        only = len(source.uses()) == 1
        name = str(source.name) if only else graphs.unique_name(str(source.name), taken)
        moved = _initialized(name, np.ascontiguousarray(array))
        weight_facts.attach(moved, _moved_facts(node, source, moved))
        output.replace_all_uses_with(moved)
        graph.remove(node, safe=True)
        for value in initializers:
            if not value.uses():
                graph.initializers.pop(str(value.name), None)
        graph.register_initializer(moved)


def _moved_facts(node: ir.Node, source: ir.Value, moved: ir.Value) -> WeightFacts:
    """Return the facts of a weight whose elements a node moves, the axes where they are then."""
    facts = weight_facts.attached(source)
    if not facts.axes:
        return facts
    assert source.shape is not None
    assert moved.shape is not None
    before, after = list(source.shape), list(moved.shape)
    if node.op_type == "Transpose":
        given = node.attributes.get("perm")
        order = list(given.as_ints()) if given is not None else list(range(len(before)))[::-1]
        return dataclasses.replace(facts, axes=tuple(order.index(at) for at in facts.axes))
    kept = [[at for at, size in enumerate(shape) if size != 1] for shape in (before, after)]
    if [before[at] for at in kept[0]] != [after[at] for at in kept[1]]:
        return dataclasses.replace(facts, constraint=None, axes=())
    place = dict(zip(*kept, strict=True))
    return dataclasses.replace(facts, axes=tuple(place[at] for at in facts.axes if at in place))


def _name_constants(model: ir.Model) -> None:
    """Number constants in graph order: of equal ones, tf2onnx keeps one or another."""
    names = graphs.Names(model)
    found = {
        id(value): value
        for node in model.graph
        for value in node.inputs
        if value is not None and value.is_initializer()
    }
    for value in found.values():
        value.name = names.value(constants.NAME)


def _number_names(model: ir.Model) -> None:
    """Number what tf2onnx named anew in graph order: its own numbers vary from run to run."""
    graph = model.graph
    outputs = (value for node in graph for value in node.outputs if not value.is_graph_output())
    numbered = [value for value in outputs if _base(value.name)]
    nodes = [node for node in graph if _base(node.name)]
    for index, value in enumerate(numbered):
        value.name = f"{_base(value.name)}\0{index}"
    names = graphs.Names(model)
    for value in numbered:
        value.name = names.value(str(value.name).partition("\0")[0])
    for node in nodes:
        names.nodes.discard(str(node.name))
    for node in nodes:
        node.name = names.node(_base(node.name))


def _forget_sizes(model: ir.Model) -> None:
    """Leave sizes that are not known unnamed, as tf2onnx numbers them; the batch is the inputs'."""
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else None for size in value.shape]
            value.shape = ir.Shape(sizes)
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape(["batch", *value.shape.dims[1:]])


def _base(name: str | None) -> str:
    """Return a name without the number that tf2onnx gave it; empty where it gave none."""
    found = _NUMBERED.fullmatch(name or "")
    return found[1] if found else ""


def _transpose(node: ir.Node, inputs: list[Array]) -> Array:
    order = node.attributes.get("perm")
    return np.transpose(inputs[0], order.as_ints() if order is not None else None)


def _reshape(node: ir.Node, inputs: list[Array]) -> Array:
    del node
    array, wanted = inputs
    shape = [array.shape[at] if size == 0 else int(size) for at, size in enumerate(wanted)]
    return array.reshape(shape)


_LAYOUTS: dict[str, Callable[[ir.Node, list[Array]], Array]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
}


def _parameter(layer: KerasLayer, name: str, first: ir.Node, names: graphs.Names) -> ir.Value:
    """Return a parameter [C] of a layer, in float32 as Keras computes with it."""
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    given = layer.parameters.get(name)
    if given is not None:
        value = _initialized(names.value(given.path), given.value)
        if not given.trained and name in _NEUTRAL:
            weight_facts.attach(value, WeightFacts(untrained=UNTRAINED))
        graph.register_initializer(value)
        return value
    like = layer.parameters["moving_mean"].value
    neutral = _initialized(
        names.value(f"{layer.path}/{name}"), _NEUTRAL[name](like.shape, like.dtype)
    )
    constant = ir.node(
        "Constant", [], {"value": neutral.const_value}, name=names.node(str(neutral.name))
    )
    output = constant.outputs[0]
    output.name, output.type, output.shape = neutral.name, neutral.type, neutral.shape
    graph.insert_before(first, constant)
    return output


def _initialized(name: str, array: Array) -> ir.Value:
    return ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )


def _replace(
    node: ir.Node, layer: KerasLayer, parameters: list[ir.Value], names: graphs.Names
) -> None:
    graph, output = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    norm = ir.node(
        "BatchNormalization",
        [node.inputs[0], *parameters],
        {"epsilon": layer.epsilon, "momentum": layer.momentum},
        name=names.node(layer.path),
    )
    result = norm.outputs[0]
    result.type, result.shape = output.type, output.shape
    provenance.mark_layer(norm, layer.path, options=layer.options, remarks=layer.remarks)
    if layer.kept_because:
        provenance.mark_kept(norm, layer.kept_because)
    graph.insert_before(node, norm)
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name


def _replace_random(node: ir.Node, draw: Mapping[str, Any], names: graphs.Names) -> None:
    """Let an Identity stand for a layer that draws in training, and say what it draws."""
    graph, output = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    order = list(node.attributes["order"].as_ints())
    shared = sorted(order.index(axis) for axis in draw.get("shared", ()))
    passing = ir.node("Identity", [node.inputs[0]], name=names.node(str(draw["layer"])))
    result = passing.outputs[0]
    result.type, result.shape = output.type, output.shape
    provenance.mark_draw(passing, {**draw, **({"shared": shared} if shared else {})})
    graph.insert_before(node, passing)
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name


def _silence_bodies(model: ir.Model, traced: Traced) -> list[str]:
    """Let layers in loops pass on what comes in; return a sentence for each that would draw."""
    remarks = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == RANDOM_MARKER and node.domain == DOMAIN:
            layer = traced.draws[node.attributes["layer"].as_int()]["layer"]
            remarks.append(
                f"layer '{layer}' is called inside a loop, and what it draws there in Keras' "
                "training is left out"
            )
            node.op_type, node.domain = "Identity", ""
            node.attributes.clear()
    return remarks
