"""The float64 twin of a model: the same graph with every float value in double precision."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import graphs

_ELEMENT_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_LARGEST_WEIGHTS = 256 * 1024 * 1024
_NO_KERNEL = frozenset(
    {"Conv", "ConvTranspose", "GlobalAveragePool", "AveragePool", "Resize", "Upsample", "LSTM"}
)
"""Operators without a float64 kernel in ONNX Runtime on the CPU, so that a twin is not worth it."""


class NoTwinError(Exception):
    """The model has no float64 twin."""


def build_twin(model: ir.Model) -> bytes:
    """Return the serialized float64 twin of a model.

    Weights, Constant nodes, Cast targets, the types of values, bodies and model-local functions
    follow; operators that insist on float32 make the twin invalid, which its runtime says.

    Raises:
        NoTwinError: Something in the model cannot be cast, or the weights exceed 256 MiB.
    """
    if sum(_size(value) for value in model.graph.initializers.values()) > _LARGEST_WEIGHTS:
        raise NoTwinError("weights are too large")
    twin = graphs.clone(model)
    if not any(_is_castable(value.dtype) for value in twin.graph.inputs):
        raise NoTwinError("no floating input")
    bodies: list[ir.Graph | ir.Function] = [twin.graph, *twin.functions.values()]
    for body in bodies:
        _cast_values(body.inputs)
        nodes = list(ir.traversal.RecursiveGraphIterator(body))
        for graph in [body.graph if isinstance(body, ir.Function) else body, *_bodies(nodes)]:
            _cast_values(graph.inputs)
            _cast_initializers(graph)
        for node in nodes:
            _cast_node(node)
    return bytes(ir.serde.serialize_model(twin).SerializeToString())


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _is_castable(dtype: ir.DataType | None) -> bool:
    return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _bodies(nodes: list[ir.Node]) -> list[ir.Graph]:
    bodies: list[ir.Graph] = []
    for attribute in (a for node in nodes for a in node.attributes.values() if not a.is_ref()):
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies


def _cast_values(values: Iterable[ir.Value]) -> None:
    for value in values:
        _cast_value(value)


def _cast_value(value: ir.Value) -> None:
    if isinstance(value.type, ir.TensorType):
        if _is_castable(value.dtype):
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    elif value.type is not None:
        raise NoTwinError(f"'{value.name}' is no tensor")


def _cast_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not _is_castable(tensor.dtype):
        return tensor
    return ir.tensor(tensor.numpy().astype(np.float64), name=tensor.name)


def _cast_initializers(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _cast_tensor(value.const_value)
        _cast_value(value)


def _cast_node(node: ir.Node) -> None:
    if node.domain == "" and node.op_type in _NO_KERNEL:
        raise NoTwinError(f"{node.op_type} has no float64 kernel")
    for attribute in list(node.attributes.values()):
        _cast_attribute(node, attribute)
    for value in node.outputs:
        _cast_value(value)
    if node.op_type == "Constant" and {"value_float", "value_floats"} & set(node.attributes):
        _cast_after(node)


def _cast_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    name = attribute.name
    if attribute.is_ref():
        if name in _ELEMENT_TYPE_ATTRIBUTES or attribute.type == ir.AttributeType.TENSOR:
            raise NoTwinError(f"attribute '{name}' of {node.op_type} is a reference")
    elif attribute.type == ir.AttributeType.TENSOR:
        node.attributes[name] = ir.AttrTensor(name, _cast_tensor(attribute.as_tensor()))
    elif attribute.type in (ir.AttributeType.SPARSE_TENSOR, ir.AttributeType.TENSORS):
        raise NoTwinError(f"attribute '{name}' of {node.op_type}")
    elif _is_floating_element_type(attribute):
        node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE)


def _is_floating_element_type(attribute: ir.Attr) -> bool:
    return (
        attribute.name in _ELEMENT_TYPE_ATTRIBUTES
        and attribute.type == ir.AttributeType.INT
        and _is_castable(ir.DataType(attribute.as_int()))
    )


def _cast_after(node: ir.Node) -> None:
    """Cast the output of a Constant that spells its value as float32 attributes."""
    value = node.outputs[0]
    value.type = ir.TensorType(ir.DataType.FLOAT)
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.DOUBLE)})
    cast.outputs[0].name = f"{value.name}.float64"
    graph = node.graph
    if graph is None:
        raise NoTwinError("a node without graph")
    value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    graph.insert_after(node, cast)
