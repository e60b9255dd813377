"""What shape an input without one is likely to take, by the weights that it meets."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs

Dimension = int | str | None
"""A static size, the name of a dynamic one, or None for a dynamic one without a name."""

_SAME_SHAPE = frozenset(
    {"Cast", "Identity", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Neg", "Dropout", "Abs"}
)
_MEAN = 3


def likely_dimensions(value: ir.Value) -> tuple[Dimension, ...] | None:
    """Return dimensions that the readers of an input take; None if that cannot be told."""
    for reader, index in _readers(value):
        if index == 0 and (found := _taken_by(reader)):
            return found
    return None


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    seen, waiting = {value}, [value]
    while waiting:
        for node, index in waiting.pop().uses():
            yield node, index
            same = node.op_type in _SAME_SHAPE and node.outputs[0] not in seen
            if same:
                seen.add(node.outputs[0])
                waiting.append(node.outputs[0])


def _taken_by(node: ir.Node) -> tuple[Dimension, ...] | None:
    if training_form.is_sync_batchnorm(node):
        return _normalized(node)
    if node.domain not in graphs.STANDARD_DOMAINS:
        return None
    if node.op_type == "BatchNormalization":
        return _normalized(node)
    weight = _sizes(node, 1)
    if node.op_type == "Conv" and len(weight) > 2:
        channels = weight[1] * node.attributes.get_int("group", 1)
        return (None, channels, *[None] * (len(weight) - 2))
    if node.op_type == "ConvTranspose" and len(weight) > 2:
        return (None, weight[0], *[None] * (len(weight) - 2))
    if node.op_type in ("MatMul", "Gemm") and len(weight) == 2:
        return (None, weight[1 if node.attributes.get_int("transB", 0) else 0])
    return None


def _normalized(node: ir.Node) -> tuple[Dimension, ...] | None:
    channels = _sizes(node, _MEAN)
    return (None, *channels, None, None) if len(channels) == 1 else None


def _sizes(node: ir.Node, index: int) -> tuple[int, ...]:
    """Return the sizes of a parameter; nothing if it is none, or they are not known."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None or not value.shape.is_static():
        return ()
    return tuple(value.shape.numpy())
