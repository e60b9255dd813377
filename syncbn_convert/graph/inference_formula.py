"""Inference-mode BatchNormalization spelled as elementwise operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.graph.graphs import label, unique_name
from syncbn_convert.graph.tape import Tape


def replace_by_elementwise(
    node: ir.Node, *, epsilon: float, taken: set[str], axis: int = 1
) -> None:
    """Replace a normalization by (X - mean) / sqrt(var + epsilon) * scale + B.

    Broadcasting is NumPy's, so the node's opset must be 7 or higher. Parameters of shape [C] are
    aligned with `axis`; those of shape [C, D1, ...], as `spatial=0` has them, need no alignment.
    Names that are made are added to `taken`.
    """
    assert node.graph is not None

    def name(made: ir.Node) -> None:
        wanted = f"{label(node)}/elementwise/{len(tape.nodes)}"
        made.outputs[0].name = unique_name(wanted, taken)

    tape = Tape(name)
    operands: Sequence[ir.Value | None] = node.inputs[:5]
    types = {value.dtype for value in operands if value is not None and value.dtype is not None}
    mixed = len(types) > 1
    if mixed:
        operands = [_widened(tape, value) for value in operands]
    x, *parameters = operands
    assert x is not None
    scale, bias, mean, variance = (_aligned(tape, x, value, axis) for value in parameters)
    constant = tape.constant([epsilon], ir.DataType.FLOAT)
    if variance.dtype is not None and variance.dtype != ir.DataType.FLOAT:
        constant = tape.op("Cast", constant, to=int(variance.dtype))
    deviation = tape.op("Sqrt", tape.op("Add", variance, constant))
    normalized = tape.op("Div", tape.op("Sub", x, mean), deviation)
    y = tape.op("Add", tape.op("Mul", normalized, scale), bias)
    if mixed:
        y = tape.op("CastLike", y, node.inputs[0])
    tape.nodes[-1].name = node.name
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], tape.nodes, [node.outputs[0]], [y]
    )


def _widened(tape: Tape, value: ir.Value | None) -> ir.Value:
    assert value is not None
    wide = tape.op("Cast", value, to=int(ir.DataType.DOUBLE))
    wide.type, wide.shape = ir.TensorType(ir.DataType.DOUBLE), value.shape
    return wide


def _aligned(tape: Tape, x: ir.Value, parameter: ir.Value | None, axis: int) -> ir.Value:
    """Return `parameter` as [C, 1, 1, ...], so that broadcasting puts C at `axis` of `x`."""
    assert parameter is not None
    if parameter.shape is not None and len(parameter.shape) != 1:
        return parameter
    aligned = tape.op("Reshape", parameter, _channel_shape(tape, x, axis))
    aligned.type = parameter.type
    return aligned


def _channel_shape(tape: Tape, x: ir.Value, axis: int) -> ir.Value:
    if axis < 0 or x.shape is not None:
        trailing = -axis - 1 if axis < 0 or x.shape is None else len(x.shape) - axis - 1
        return tape.ints(-1, *[1] * trailing)
    rank = tape.op("Shape", tape.op("Shape", x))
    spatial_rank = tape.op("Sub", rank, tape.ints(axis + 1))
    ones = tape.op("ConstantOfShape", spatial_rank, value=ir.tensor([1]))
    return tape.op("Concat", tape.ints(-1), ones, axis=0)
