"""A match holds if its nodes compute what the normalization computes, on random data."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from syncbn_convert.graph import graphs
from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.passes.recognition.matching import Match

logger = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]

TOLERANCE = 2.0**-40
"""Relative to the largest result: some 30 roundings of 2**-53 in a row, sums of up to 2**9 elements
whose mean is as large as their deviation, and a margin of 2**4."""
_ROWS = 8
_MOST_ROWS = 64
_SIZES = (3, 5, 2)
"""Of the axes that are neither samples nor channels."""
_FLOATS = frozenset(
    [
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    ]
)


def holds(match: Match, parameters: dict[str, Float64], epsilon: float, model: ir.Model) -> bool:
    """Whether the nodes of a match return, in float64, what the normalization does.

    Args:
        match: What was found.
        parameters: Scale, bias, mean and variance [C] by role, as the normalization will have them.
            Without a mean, that of the batch is taken, and so is the variance.
        epsilon: Added to the variance.
        model: The model, which holds the constants.
    """
    generator = np.random.default_rng(match.channels)
    sizes = [_ROWS, *(_SIZES[i % len(_SIZES)] for i in range(match.rank - 1))]
    sizes = [1 if known == 1 else size for known, size in zip(match.sizes, sizes, strict=True)]
    rows = match.sizes[0]
    sizes[0] = rows if isinstance(rows, int) and rows < _MOST_ROWS else _ROWS
    sizes[match.axis] = match.channels
    x = generator.normal(1.0, 1.0, sizes)
    try:
        found = _run(match, x, model)
    except Exception:  # whatever the reference implementation raises
        logger.debug("'%s' cannot be evaluated", match.y.name, exc_info=True)
        return False
    wanted = np.transpose(_normalized(x, match.axis, parameters, epsilon), match.order)
    if found.shape != wanted.shape or not np.isfinite(wanted).all():
        return False
    error = np.max(np.abs(found - wanted))
    return bool(error <= TOLERANCE * np.max(np.abs(wanted)))


def _normalized(x: Float64, axis: int, parameters: dict[str, Float64], epsilon: float) -> Float64:
    others = tuple(i for i in range(x.ndim) if i != axis)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    mean = parameters.get("input_mean", x.mean(axis=others))
    centred = x - mean.reshape(shape)
    variance = parameters.get("input_var", (centred**2).mean(axis=others))
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + epsilon).reshape(shape)
        scale, bias = (parameters[role].reshape(shape) for role in ("scale", "B"))
        result: Float64 = centred / deviation * scale + bias
    return result


def _run(match: Match, x: Float64, model: ir.Model) -> Float64:
    """Run the nodes that lead from X to Y, and the constants they read, in float64."""
    nodes, constants = _between(match)
    root = str(match.root.name)
    graph = oh.make_graph(
        [_node(node) for node in nodes],
        "match",
        [oh.make_tensor_value_info(root, onnx.TensorProto.DOUBLE, None)],
        [oh.make_tensor_value_info(str(match.y.name), onnx.TensorProto.DOUBLE, None)],
        [onh.from_array(_widened(array), name) for name, array in constants.items()],
    )
    opset = oh.make_opsetid("", graphs.opset_version(model))
    proto = oh.make_model(graph, opset_imports=[opset], ir_version=model.ir_version or 8)
    feeds = {root: np.transpose(x, np.argsort(match.layout))}
    with np.errstate(all="ignore"):
        (found,) = ReferenceEvaluator(proto).run(None, feeds)
    return np.asarray(found, np.float64)


def _between(match: Match) -> tuple[list[ir.Node], dict[str, npt.NDArray[Any]]]:
    """Return the nodes that Y needs, each after what it reads, and the initializers."""
    nodes: dict[ir.Node, None] = {}
    constants: dict[str, npt.NDArray[Any]] = {}
    pending = [(match.y, False)]
    while pending:
        value, ready = pending.pop()
        node = value.producer()
        if value is match.root or node in nodes:
            continue
        if node is None:
            assert value.const_value is not None
            constants[str(value.name)] = value.const_value.numpy()
        elif ready:
            nodes[node] = None
        else:
            pending.append((value, True))
            pending += [(operand, False) for operand in node.inputs if operand is not None]
    return list(nodes), constants


def _node(node: ir.Node) -> onnx.NodeProto:
    proto = ir.to_proto(node)
    for attribute in proto.attribute:
        if proto.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        if attribute.type == onnx.AttributeProto.TENSOR:
            values = onh.to_array(attribute.t)
            attribute.t.CopyFrom(onh.from_array(_widened(values), attribute.t.name))
    return proto


def _widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(np.float64) if is_floating(values.dtype) else values
