"""An affine map per channel into the weights of the node that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from syncbn_convert.files.scaled_tensor import wide_blocks
from syncbn_convert.graph import graphs
from syncbn_convert.graph.weighted import CONV, GEMM, MATMUL, OPERATORS
from syncbn_convert.passes.fusion.affine import CallRefusal, ChannelAffine, Float64, Refusal
from syncbn_convert.passes.fusion.edits import Fusion
from syncbn_convert.passes.fusion.paths import Way
from syncbn_convert.passes.fusion.producers import Context
from syncbn_convert.passes.fusion.scaled import along, scaled
from syncbn_convert.passes.fusion.weights import (
    Edit,
    bias_edit,
    read_bias,
    read_weight,
    require_groups,
    rounded,
)


def fuse_into_reader(
    value: ir.Value, affine: ChannelAffine, context: Context
) -> tuple[Fusion, Way]:
    """Return how the only reader of `value`, whose channels are at axis 1, takes its affine map.

    Returns:
        That, and what lies between the two.

    Raises:
        Refusal: if it cannot; without a word where the reader is none that ever could.
    """
    node, way = reader_of(value, context)
    return _CONSUMERS[node.op_type](node, affine, context), way


def reader_of(value: ir.Value, context: Context) -> tuple[ir.Node, Way]:
    """Return the node that may take an affine map of `value`, and what lies between the two.

    Raises:
        Refusal: as `fuse_into_reader`.
    """
    way = Way()
    node = _only_reader(value)
    flat = False
    while node.op_type in ("Identity", "Flatten"):
        if node.op_type == "Flatten" and (flat or node.attributes.get_int("axis", 1) != 1):
            raise Refusal("Flatten after it does not begin at the channels")
        flat |= node.op_type == "Flatten"
        if node.op_type == "Identity":
            way.absorbed.insert(0, (node, value))
        value = node.outputs[0]
        way.passed.append(value)
        node = _only_reader(value)
    if node.op_type not in _CONSUMERS:
        raise Refusal("")
    if node.inputs[0] is not value or list(node.inputs).count(value) > 1:
        raise Refusal(f"{node.op_type} reads it as a weight")
    convolution = OPERATORS[node.op_type].is_convolution
    if flat and convolution:
        raise Refusal(f"it is read by {node.op_type} through Flatten")
    if not flat and not convolution and context.shapes.rank(value) != 2:
        raise Refusal(f"{node.op_type} after it sums over another axis")
    return node, way


def _only_reader(value: ir.Value) -> ir.Node:
    readers = graphs.readers(value)
    if value.is_graph_output() or len(readers) != 1:
        raise Refusal("")
    (reader,) = readers
    if reader.graph is not value.graph:
        raise Refusal("")
    if reader.domain not in graphs.STANDARD_DOMAINS:
        raise CallRefusal(reader, "it is read by")
    return reader


def _conv(node: ir.Node, affine: ChannelAffine, context: Context) -> Fusion:
    """With padding the borders see zeros that the map would have shifted."""
    weight = read_weight(node.inputs[CONV.weight], context.model)
    group = node.attributes.get_int("group", 1)
    require_groups(group, weight.shape.numpy())
    outputs, per_group, *kernel = weight.shape.numpy()
    if affine.shifts and _pads(node, kernel):
        raise Refusal("Conv after it pads with zeros, which the shift would change")
    affine = affine.of(per_group * group)
    multiplier, addend = (
        np.repeat(values.reshape(group, per_group), outputs // group, axis=0)
        for values in (affine.multiplier, affine.addend)
    )
    fused = scaled(weight, multiplier.reshape(outputs, per_group, *[1] * len(kernel)), CONV.outputs)
    fusion = Fusion([Edit(node, CONV.weight, fused)])
    if not affine.shifts:
        return fusion
    shift = np.concatenate(
        [
            np.einsum("ocx,oc->o", block.reshape(*block.shape[:2], -1), addend[start:stop])
            for start, stop, block in wide_blocks(weight)
        ]
    )
    old = CONV.bias_of(node)
    if old is not None:
        shift += read_bias(old, context.model, shift.shape)
    fusion.edits.append(bias_edit(node, rounded(shift, weight.dtype)))
    return fusion


def _pads(node: ir.Node, kernel: Sequence[int]) -> bool:
    """Whether a Conv pads; by `auto_pad` it does not where the kernel is a single pixel."""
    auto = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return any(node.attributes.get_ints("pads", ())) or (auto and max(kernel) > 1)


def _gemm(node: ir.Node, affine: ChannelAffine, context: Context) -> Fusion:
    if node.attributes.get_int("transA", 0):
        raise Refusal("Gemm after it transposes it")
    weight = read_weight(node.inputs[GEMM.weight], context.model)
    if len(weight.shape) != 2:
        raise Refusal(f"its weights have {len(weight.shape)} axes")
    rows, columns = GEMM.input_axis(node, 2), GEMM.output_axis(node, 2)
    multiplier, addend = _repeated(affine, weight.shape.numpy()[rows])
    fusion = Fusion([Edit(node, GEMM.weight, scaled(weight, along(multiplier, rows, 2), columns))])
    if not addend.any():
        return fusion
    alpha = np.float64(np.float32(node.attributes.get_float("alpha", 1.0)))
    shift = alpha * _shift(weight, addend, rows)
    old = GEMM.bias_of(node)
    if old is not None:
        beta = np.float64(np.float32(node.attributes.get_float("beta", 1.0)))
        shift = read_bias(old, context.model, [None, shift.size]) * beta + shift
    fusion.edits.append(bias_edit(node, rounded(shift, weight.dtype)))
    fusion.set_beta(node)
    return fusion


def _matmul(node: ir.Node, affine: ChannelAffine, context: Context) -> Fusion:
    weight = read_weight(node.inputs[MATMUL.weight], context.model)
    if len(weight.shape) != 2:
        raise Refusal("MatMul after it is no matrix product")
    rows, columns = MATMUL.input_axis(node, 2), MATMUL.output_axis(node, 2)
    multiplier, addend = _repeated(affine, weight.shape.numpy()[rows])
    fused = scaled(weight, along(multiplier, rows, 2), columns)
    fusion = Fusion([Edit(node, MATMUL.weight, fused)])
    if addend.any():
        fusion.added = (node.outputs[0], rounded(_shift(weight, addend, rows), weight.dtype))
    return fusion


def _repeated(affine: ChannelAffine, rows: int) -> tuple[Float64, Float64]:
    """Return the map for each row of a weight, several of which follow a channel after Flatten."""
    channels = affine.multiplier.size
    if rows % channels:
        raise Refusal(f"{channels} channels meet {rows} rows")
    return np.repeat(affine.multiplier, rows // channels), np.repeat(
        affine.addend, rows // channels
    )


def _shift(weight: ir.TensorProtocol, addend: Float64, rows: int) -> Float64:
    """Return addend @ weight, whose axis `rows` is summed over."""
    if rows == 1:
        return np.concatenate([block @ addend for _, _, block in wide_blocks(weight)])
    parts = (addend[start:stop] @ block for start, stop, block in wide_blocks(weight))
    return sum(parts, start=np.zeros(weight.shape.numpy()[1]))


_CONSUMERS: dict[str, Callable[[ir.Node, ChannelAffine, Context], Fusion]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
