"""Inference-mode normalization over a channel axis other than 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.graph import constants, graphs
from syncbn_convert.graph.inference_formula import replace_by_elementwise
from syncbn_convert.graph.tape import Tape

_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def is_first(axis: int, rank: int | None) -> bool:
    """Whether `axis` is that of ONNX's BatchNormalization, 1."""
    return axis == 1 or (rank is not None and axis + rank == 1)


def replace_by_affine(
    node: ir.Node, model: ir.Model, names: graphs.Names, *, axis: int, epsilon: float
) -> str:
    """Replace an inference-mode normalization by X * multiplier + addend; return how it is spelled.

    Both are computed in float64 and rounded once, to float32 or wider; narrower inputs are cast
    around. Where a parameter is not constant, or the number of axes after the channel axis is not
    known, the formula itself takes its place.
    """
    x, graph = node.inputs[0], node.graph
    assert x is not None
    assert graph is not None
    tensors = [_constant(value, model) for value in node.inputs[1:5]]
    trailing = _trailing_axes(axis, x)
    if trailing is None or any(tensor is None for tensor in tensors) or x.dtype is None:
        replace_by_elementwise(node, epsilon=epsilon, taken=names.values, axis=axis)
        return "elementwise"
    scale, bias, mean, var = (tensor for tensor in tensors if tensor is not None)
    with np.errstate(all="ignore"):
        multiplier = scale / np.sqrt(var + np.float64(np.float32(epsilon)))
        addend = bias - mean * multiplier
    dtype = x.dtype if x.dtype in _WIDE else ir.DataType.FLOAT
    factors = [
        _initializer(values, trailing, dtype, f"{graphs.label(node)}/{name}", model, names)
        for name, values in (("multiplier", multiplier), ("addend", addend))
    ]

    def name_node(made: ir.Node) -> None:
        made.name = names.node(f"{graphs.label(node)}/{made.op_type}")
        made.outputs[0].name = names.value(f"{node.outputs[0].name}/{made.op_type}")

    tape = Tape(name_node)
    wide = x if x.dtype == dtype else tape.op("Cast", x, to=int(dtype))
    y = tape.op("Add", tape.op("Mul", wide, factors[0]), factors[1])
    if x.dtype != dtype:
        y = tape.op("Cast", y, to=int(x.dtype))
    _replace(node, tape.nodes, y)
    return "Mul and Add"


def wrap_in_transposes(node: ir.Node, names: graphs.Names, *, axis: int, rank: int) -> None:
    """Put Transposes around a BatchNormalization whose channels are at `axis` of `rank`."""
    x, graph = node.inputs[0], node.graph
    assert x is not None
    assert graph is not None
    there = [0, axis % rank, *(i for i in range(1, rank) if i != axis % rank)]
    back = [there.index(i) for i in range(rank)]
    y, label = node.outputs[0], graphs.label(node)
    before = ir.node("Transpose", [x], {"perm": there}, name=names.node(f"{label}/channels_first"))
    after = ir.node("Transpose", [y], {"perm": back}, name=names.node(f"{label}/channels_back"))
    name = str(y.name)
    before.outputs[0].name = names.value(f"{name}/channels_first")
    before.outputs[0].type = x.type
    after.outputs[0].type, after.outputs[0].shape = y.type, y.shape
    y.replace_all_uses_with(after.outputs[0], replace_graph_outputs=True)
    after.replace_input_with(0, y)
    y.name = names.value(f"{name}/normalized")
    y.shape = None
    after.outputs[0].name = name
    node.replace_input_with(0, before.outputs[0])
    graph.insert_before(node, before)
    graph.insert_after(node, after)


def _constant(value: ir.Value | None, model: ir.Model) -> npt.NDArray[Any] | None:
    tensor = constants.constant_tensor(value, model) if value is not None else None
    return tensor.numpy().astype(np.float64) if tensor is not None else None


def _trailing_axes(axis: int, x: ir.Value) -> int | None:
    if axis < 0:
        return -axis - 1
    return len(x.shape) - axis - 1 if x.shape is not None else None


def _initializer(
    values: npt.NDArray[Any],
    trailing: int,
    dtype: ir.DataType,
    name: str,
    model: ir.Model,
    names: graphs.Names,
) -> ir.Value:
    name = names.value(name)
    with np.errstate(all="ignore"):
        array = values.reshape([-1, *[1] * trailing]).astype(dtype.numpy())
    value = ir.Value(
        name=name,
        type=ir.TensorType(dtype),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name, dtype=dtype),
    )
    model.graph.register_initializer(value)
    return value


def _replace(node: ir.Node, nodes: Sequence[ir.Node], y: ir.Value) -> None:
    nodes[-1].name = node.name
    graph = node.graph
    assert graph is not None
    parameters = node.inputs[1:5]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [y])
    for value in parameters:
        if value is not None and not value.uses() and not value.is_graph_output():
            _drop(value, graph)


def _drop(value: ir.Value, graph: ir.Graph | ir.Function) -> None:
    if value.is_initializer() and not value.is_graph_input() and isinstance(graph, ir.Graph):
        del graph.initializers[str(value.name)]
    else:
        graphs.remove_dead_producers([value])
