"""Results of single nodes on constants, by ONNX's reference implementation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from syncbn_convert.graph import graphs

logger = logging.getLogger(__name__)

Operands = Mapping[str, ir.TensorProtocol]
Array = npt.NDArray[Any]

OF_SHAPES = frozenset(["Shape", "Size"])
"""Operators that look at nothing but sizes."""
_MOVING = frozenset(
    ["Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"]
) | {"Unsqueeze"}
_REPEATING = frozenset(["ConstantOfShape", "Expand", "Gather", "Tile"])
_POINTWISE = (
    frozenset(["Abs", "Add", "Cast", "CastLike", "Ceil", "Clip", "Div", "Equal", "Erf", "Exp"])
    | frozenset(["Floor", "Greater", "Less", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg"])
    | frozenset(
        ["Not", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softplus", "Sqrt"]
    )
    | frozenset(["Sub", "Sum", "Tanh", "Where"])
)
_QUANTIZING = frozenset(["DequantizeLinear", "QuantizeLinear"])
_FIRST_OPSET_OF_QUANTIZING = 19
"""In the reference implementation; what earlier ones take means the same there."""
_REDUCING = frozenset(
    ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"]
) | {"ReduceSumSquare"}
OPERATORS = (
    _MOVING | _REPEATING | _POINTWISE | _REDUCING | _QUANTIZING | {"Constant", "MatMul", "Range"}
)
_CONTRIB_DOMAIN = "com.microsoft"
_OPSET_OF_QUANTIZING = 21
"""It has the types that ONNX Runtime's own operators had before, and means what earlier ones do."""


def is_known(node: ir.Node) -> bool:
    """Whether the operator of a node is one that can be computed."""
    if node.domain == _CONTRIB_DOMAIN:
        return node.op_type in _QUANTIZING
    return node.domain in graphs.STANDARD_DOMAINS and node.op_type in OPERATORS


_LARGEST_AT_ONCE = 1 << 20
"""Elements; a parameter of a normalization has one per channel."""
_LARGEST_COMPUTED = 1 << 24
"""Elements of weights that are calculated."""
_LARGEST_REPEATED = 1 << 25


def evaluate(
    node: ir.Node, value: ir.Value, operands: Operands, opset: int
) -> ir.TensorProtocol | None:
    """Return output `value` of a node, or None if it cannot be computed or is too large to be.

    What has many elements is computed when it is read: results that only move values, in any size,
    others up to a bound.

    Args:
        node: Of one of `OPERATORS`.
        value: One of its outputs.
        operands: Its inputs by name, without those that give nothing but a type.
        opset: That the node is written in.
    """
    proto = _proto(node)
    if proto.op_type in _QUANTIZING:
        proto.domain, opset = "", max(opset, _OPSET_OF_QUANTIZING)
    largest = max((tensor.size for tensor in operands.values()), default=0)
    result = _inferred(proto, str(value.name), operands, opset)
    if result is None and (largest > _LARGEST_AT_ONCE or node.op_type in _REPEATING | {"Range"}):
        return None
    dtype, shape = result or (ir.DataType.UNDEFINED, ir.Shape(()))
    size = int(np.prod(shape.numpy(), dtype=np.float64))
    if max(largest, size) <= _LARGEST_AT_ONCE or _is_reduced(node, largest, size):
        array = _run(proto, value, operands, opset)
        return None if array is None else ir.tensor(array, name=value.name)
    if not _can_wait(node, value, operands, opset, max(largest, size)):
        return None

    def compute() -> ir.TensorProtocol:
        array = _run(proto, value, operands, opset)
        assert array is not None
        return ir.Tensor(array, dtype, shape=shape)

    return ir.LazyTensor(compute, dtype, shape, name=value.name)


def _is_reduced(node: ir.Node, largest: int, size: int) -> bool:
    return node.op_type in _REDUCING and largest <= _LARGEST_COMPUTED and size <= _LARGEST_AT_ONCE


def _can_wait(node: ir.Node, value: ir.Value, operands: Operands, opset: int, largest: int) -> bool:
    """Whether a large result can be computed later, as surely as it can be told now."""
    if node.op_type in _MOVING:
        return True
    if node.op_type in _REPEATING:
        return largest <= _LARGEST_REPEATED
    only_types = node.op_type in ("Cast", "CastLike")
    if node.op_type not in _POINTWISE or (largest > _LARGEST_COMPUTED and not only_types):
        return False
    firsts = {name: _first_element(tensor) for name, tensor in operands.items()}
    return _run(_proto(node), value, firsts, opset) is not None


def _first_element(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor of one element, of the rank and type of `tensor`."""
    ones = np.ones([1] * len(tensor.shape), tensor.dtype.numpy())
    return ir.Tensor(ones, tensor.dtype)


def _proto(node: ir.Node) -> onnx.NodeProto:
    """Return a node for the reference implementation; a type to cast to is written out."""
    proto = ir.to_proto(node)
    if node.op_type == "CastLike":
        like = node.inputs[1]
        assert like is not None
        assert like.dtype is not None
        proto.op_type = "Cast"
        del proto.input[1:]
        proto.attribute.append(onnx.helper.make_attribute("to", int(like.dtype)))
    return proto


def _inferred(
    proto: onnx.NodeProto, name: str, operands: Operands, opset: int
) -> tuple[ir.DataType, ir.Shape] | None:
    """Return type and shape of an output; None if ONNX's inference cannot tell."""
    types = {
        name: onnx.helper.make_tensor_type_proto(int(tensor.dtype), tensor.shape.numpy())
        for name, tensor in operands.items()
    }
    data = {
        name: ir.to_proto(tensor)
        for name, tensor in operands.items()
        if tensor.size <= _LARGEST_AT_ONCE and tensor.dtype == ir.DataType.INT64
    }
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(proto.op_type, opset, ""),
            proto,
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )[name].tensor_type
    except Exception:  # whatever inference raises
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in inferred.shape.dim]
    if not inferred.HasField("shape") or not inferred.elem_type or None in sizes:
        return None
    return ir.DataType(inferred.elem_type), ir.Shape(sizes)


def _run(proto: onnx.NodeProto, value: ir.Value, operands: Operands, opset: int) -> Array | None:
    if proto.op_type in _QUANTIZING:
        opset = max(opset, _FIRST_OPSET_OF_QUANTIZING)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "constant",
            [
                onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())
                for name, tensor in operands.items()
            ],
            [onnx.ValueInfoProto(name=value.name)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    from onnx.reference import ReferenceEvaluator  # most models never need it

    feeds = {name: tensor.numpy() for name, tensor in operands.items()}
    try:
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # whatever the reference implementation raises
        logger.debug("node '%s' cannot be computed", proto.name, exc_info=True)
        return None
    return np.asarray(result)
