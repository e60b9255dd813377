"""An affine map per channel into the weights of the node before it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph.graphs import FIRST_OPSET_OF_NUMPY_BROADCASTING
from syncbn_convert.graph.weighted import CONV, CONV_TRANSPOSE, GEMM, OPERATORS
from syncbn_convert.passes.fusion.affine import ChannelAffine, Float64, Refusal
from syncbn_convert.passes.fusion.edits import Fusion
from syncbn_convert.passes.fusion.known_shapes import Shapes
from syncbn_convert.passes.fusion.paths import Leaf
from syncbn_convert.passes.fusion.quantized import quantized_weight
from syncbn_convert.passes.fusion.scaled import along, scaled
from syncbn_convert.passes.fusion.weights import (
    Edit,
    bias_edit,
    read_bias,
    read_weight,
    require_groups,
    rounded,
)


@dataclasses.dataclass(frozen=True)
class Context:
    """What the rules need to know of the model."""

    model: ir.Model
    shapes: Shapes
    opset: int


def fuse_into(leaf: Leaf, context: Context) -> Fusion:
    """Return how the node of `leaf` takes its affine map.

    Raises:
        Refusal: if it cannot.
    """
    return _PRODUCERS[leaf.node.op_type](leaf, context)


def _scaled_input(
    node: ir.Node, index: int, context: Context
) -> tuple[list[int], ir.DataType, Callable[[Float64, int], Fusion]]:
    """Return the shape of a weight, the type it has when it is used, and how an axis is scaled."""
    quantized = quantized_weight(node, index, context.model)
    if quantized is not None:
        scale = functools.partial(quantized.scaled, opset=context.opset)
        return list(quantized.shape), quantized.real.dtype, scale
    weight = read_weight(node.inputs[index], context.model)
    shape = list(weight.shape.numpy())

    def scale_plain(multiplier: Float64, axis: int) -> Fusion:
        return Fusion(
            [Edit(node, index, scaled(weight, along(multiplier, axis, len(shape)), axis))]
        )

    return shape, weight.dtype, scale_plain


def _scaled_channels(leaf: Leaf, context: Context) -> tuple[Fusion, ChannelAffine, ir.DataType]:
    """Return how a weight takes the multipliers, the map of each channel, and the weight's type."""
    operator = OPERATORS[leaf.node.op_type]
    shape, dtype, scale = _scaled_input(leaf.node, operator.weight, context)
    if operator.is_convolution:
        require_groups(leaf.node.attributes.get_int("group", 1), shape)
    elif len(shape) != 2:
        raise Refusal(f"its weights have {len(shape)} axes")
    axis = operator.output_axis(leaf.node, len(shape))
    affine = leaf.affine.of(shape[axis])
    return scale(affine.multiplier, axis), affine, dtype


def _conv(leaf: Leaf, context: Context) -> Fusion:
    _require_axis(leaf, CONV.channel_axis)
    fusion, affine, dtype = _scaled_channels(leaf, context)
    fusion.edits += _bias(leaf.node, affine, dtype, context)
    return fusion


def _conv_transpose(leaf: Leaf, context: Context) -> Fusion:
    """Weights are [C, M / group, ...]: output channel m is column m % (M / group) of its group."""
    operator = CONV_TRANSPOSE
    _require_axis(leaf, operator.channel_axis)
    group = leaf.node.attributes.get_int("group", 1)
    if group == 1:
        fusion, affine, dtype = _scaled_channels(leaf, context)
    else:
        weight = read_weight(leaf.node.inputs[operator.weight], context.model)
        require_groups(group, weight.shape.numpy())
        inputs, per_group, *kernel = weight.shape.numpy()
        dtype, affine = weight.dtype, leaf.affine.of(per_group * group)
        factor = affine.multiplier.reshape(group, per_group, *[1] * len(kernel))
        factor = np.repeat(factor, inputs // group, axis=0)
        fused = scaled(weight, factor, operator.outputs)
        fusion = Fusion([Edit(leaf.node, operator.weight, fused)])
    fusion.edits += _bias(leaf.node, affine, dtype, context)
    return fusion


def _gemm(leaf: Leaf, context: Context) -> Fusion:
    _require_axis(leaf, GEMM.channel_axis)
    node = leaf.node
    if context.opset < FIRST_OPSET_OF_NUMPY_BROADCASTING:
        raise Refusal(f"Gemm of opset {context.opset} broadcasts otherwise")
    fusion, affine, dtype = _scaled_channels(leaf, context)
    bias = GEMM.bias_of(node)
    if bias is not None:
        old = read_bias(bias, context.model, [None, affine.multiplier.size])
        beta = np.float64(np.float32(node.attributes.get_float("beta", 1.0)))
        addend = old * beta * affine.multiplier + affine.addend
        fusion.edits.append(bias_edit(node, rounded(addend, dtype)))
        fusion.set_beta(node)
    elif affine.shifts:
        fusion.edits.append(bias_edit(node, rounded(affine.addend, dtype)))
        fusion.set_beta(node)
    return fusion


def _matmul(leaf: Leaf, context: Context) -> Fusion:
    """The constant on the right has its channels in the last axis, one on the left before it."""
    rank = context.shapes.rank(leaf.value)
    from_end = rank - leaf.axis
    if from_end not in (1, 2):
        raise Refusal("the channels are not an axis that MatMul makes")
    index = 1 if from_end == 1 else 0
    shape, dtype, scale = _scaled_input(leaf.node, index, context)
    if len(shape) < 2:
        raise Refusal("MatMul with a vector")
    channels = len(shape) - from_end
    affine = leaf.affine.of(shape[channels])
    fusion = scale(affine.multiplier, channels)
    if affine.shifts:
        if index == 0 and context.opset < FIRST_OPSET_OF_NUMPY_BROADCASTING:
            raise Refusal(f"Add of opset {context.opset} broadcasts otherwise")
        addend = affine.addend.reshape([-1, *[1] * (from_end - 1)])
        fusion.added = (leaf.value, rounded(addend, dtype))
    return fusion


def _batchnorm(leaf: Leaf, context: Context) -> Fusion:
    _require_axis(leaf, 1)
    scale, bias = (
        read_weight(value, context.model, quantized=True) for value in leaf.node.inputs[1:3]
    )
    if len(scale.shape) != 1 or bias.size != scale.size:
        raise Refusal("the BatchNormalization before it has no parameter for each channel")
    affine = leaf.affine.of(scale.size)
    addend = bias.numpy().astype(np.float64) * affine.multiplier + affine.addend
    return Fusion(
        [
            Edit(leaf.node, 1, scaled(scale, affine.multiplier, 0)),
            Edit(leaf.node, 2, rounded(addend, bias.dtype)),
        ]
    )


def _bias(node: ir.Node, affine: ChannelAffine, dtype: ir.DataType, context: Context) -> list[Edit]:
    """Return the edit of a Conv's bias, if it has or needs one."""
    old = OPERATORS[node.op_type].bias_of(node)
    if old is None and not affine.shifts:
        return []
    values = affine.addend
    if old is not None:
        bias = read_bias(old, context.model, affine.addend.shape)
        values = bias * affine.multiplier + affine.addend
    return [bias_edit(node, rounded(values, dtype))]


def _require_axis(leaf: Leaf, axis: int) -> None:
    if leaf.axis != axis:
        raise Refusal(f"the channels are not at axis {axis} of {leaf.node.op_type}")


_PRODUCERS: dict[str, Callable[[Leaf, Context], Fusion]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batchnorm,
}
PRODUCERS = frozenset(_PRODUCERS) - {"BatchNormalization"}
