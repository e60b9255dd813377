"""A ModelProto without its large weights, for ONNX's C++ functions that copy whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from syncbn_convert.graph import map_types

_LARGE = 1024
"""Bytes; what adapters and shape inference look at (shapes, axes, scales) is smaller."""


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """Return `model` as protobuf, its large initializers turned into graph inputs of their type."""
    with _large_initializers_as_inputs(model):
        proto: onnx.ModelProto = ir.to_proto(model)
    complete_calls(proto)
    map_types.put_back(proto, model)
    return proto


def complete_calls(proto: onnx.ModelProto) -> None:
    """Let calls of functions have as many outputs as the function; ONNX's inference wants that."""
    counts = {(f.domain, f.name): len(f.output) for f in proto.functions}
    pending = [proto.graph.node, *(function.node for function in proto.functions)] if counts else []
    while pending:
        for node in pending.pop():
            missing = counts.get((node.domain, node.op_type), 0) - len(node.output)
            node.output.extend([""] * missing)
            for attribute in node.attribute:
                pending += [graph.node for graph in (attribute.g, *attribute.graphs)]


def _inside(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """Return a tensor whose values C++ functions find in the protobuf, not in another file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


@contextmanager
def _large_initializers_as_inputs(model: ir.Model) -> Iterator[None]:
    graph = model.graph
    initializers = list(graph.initializers.values())
    tensors = [value.const_value for value in initializers]
    inputs = list(graph.inputs)
    try:
        for value, tensor in zip(initializers, tensors, strict=True):
            if tensor is None or tensor.nbytes <= _LARGE:
                value.const_value = _inside(tensor)
                continue
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            if not value.is_graph_input():
                graph.inputs.append(value)
            del graph.initializers[str(value.name)]
            value.const_value = None
        yield
    finally:
        graph.initializers.clear()
        for value, tensor in zip(initializers, tensors, strict=True):
            value.const_value = tensor
            graph.initializers.add(value)
        if len(graph.inputs) != len(inputs):
            graph.inputs.clear()
            graph.inputs.extend(inputs)
