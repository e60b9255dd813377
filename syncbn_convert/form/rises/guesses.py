"""Rank and element type of values that ONNX's inference does not reach, as operators tell them."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.graph import graphs

_RANK_OF_FIRST_INPUT = frozenset(
    [
        *("Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip"),
        *("Concat", "Conv", "ConvTranspose", "DepthToSpace", "Div", "Dropout", "Elu", "Exp"),
        *("Floor", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "HardSigmoid"),
        *("Hardmax", "Identity", "InstanceNormalization", "LRN", "LeakyRelu", "Log"),
        *("LogSoftmax", "LpNormalization", "LpPool", "MaxPool", "MeanVarianceNormalization"),
        *("Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "Reciprocal", "Relu", "Resize"),
        *("Selu", "Sigmoid", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split"),
        *("Sqrt", "Sub", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Upsample"),
        *("Xor"),
    ]
)
"""Until opset 6; later the second input of a broadcast may have more axes."""
_MATRIX = ("Flatten", "Gemm")
_OTHER_TYPE = frozenset(
    [
        *("And", "ArgMax", "ArgMin", "Cast", "ConstantOfShape", "Equal", "EyeLike"),
        *("Greater", "If", "IsInf", "IsNaN", "Less", "Loop", "NonZero", "Not", "OneHot", "Or"),
        *("Scan", "Shape", "Size", "Where", "Xor"),
    ]
)


def rank_of(value: ir.Value) -> int | None:
    """Return the number of axes in a model of opset 6 or less; None where nothing tells it."""
    current: ir.Value | None = value
    while current is not None and current.shape is None:
        if current.const_value is not None:
            return len(current.const_value.shape)
        node = current.producer()
        if node is None or node.domain not in graphs.STANDARD_DOMAINS:
            return None
        if node.op_type in _MATRIX:
            return 2
        if node.op_type not in _RANK_OF_FIRST_INPUT or not node.inputs:
            return None
        current = node.inputs[0]
    return None if current is None or current.shape is None else len(current.shape)


def dtype_of(value: ir.Value) -> ir.DataType:
    """Return the element type; float32 where nothing tells it."""
    current: ir.Value | None = value
    while current is not None and current.dtype is None:
        node = current.producer()
        if node is None or node.op_type in _OTHER_TYPE or not node.inputs:
            break
        current = node.inputs[0]
    return ir.DataType.FLOAT if current is None or current.dtype is None else current.dtype
