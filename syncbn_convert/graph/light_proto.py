"""A ModelProto without its large weights, for ONNX's C++ functions that copy whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

_LARGE = 1024
"""Bytes; what adapters and shape inference look at (shapes, axes, scales) is smaller."""


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """Return `model` as protobuf, its large initializers turned into graph inputs of their type."""
    with _large_initializers_as_inputs(model):
        return ir.to_proto(model)


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
