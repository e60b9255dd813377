"""An affine map per channel into the weights of the node that reads it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from syncbn_convert import graphs
from syncbn_convert.fusion.affine import ChannelAffine, Float64, Refusal
from syncbn_convert.fusion.edits import Fusion
from syncbn_convert.fusion.producers import Context
from syncbn_convert.fusion.weights import Array, Edit, read_weight, rounded


def fuse_into_reader(value: ir.Value, affine: ChannelAffine, context: Context) -> Fusion:
    """Return how the only reader of `value`, whose channels are at axis 1, takes its affine map.

    Raises:
        Refusal: if it cannot; without a word where the reader is none that ever could.
    """
    node = _only_reader(value)
    flat = False
    while node.op_type in ("Identity", "Flatten"):
        if node.op_type == "Flatten" and (flat or node.attributes.get_int("axis", 1) != 1):
            raise Refusal("Flatten after it does not begin at the channels")
        flat |= node.op_type == "Flatten"
        value = node.outputs[0]
        node = _only_reader(value)
    rule = _CONSUMERS.get(node.op_type)
    if rule is None:
        raise Refusal("")
    if node.inputs[0] is not value or list(node.inputs).count(value) > 1:
        raise Refusal(f"{node.op_type} reads it as a weight")
    if flat and node.op_type not in ("Gemm", "MatMul"):
        raise Refusal(f"it is read by {node.op_type} through Flatten")
    if not flat and node.op_type in ("Gemm", "MatMul") and context.shapes.rank(value) != 2:
        raise Refusal(f"{node.op_type} after it sums over another axis")
    return rule(node, affine, context)


def _only_reader(value: ir.Value) -> ir.Node:
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        raise Refusal("")
    reader = uses[0].node
    producer = value.producer()
    if reader.domain not in graphs.STANDARD_DOMAINS or (
        producer is not None and reader.graph is not producer.graph
    ):
        raise Refusal("")
    return reader


def _conv(node: ir.Node, affine: ChannelAffine, context: Context) -> Fusion:
    """With padding the borders see zeros that the map would have shifted."""
    padded = any(node.attributes.get_ints("pads", ()))
    auto = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if affine.shifts and (padded or auto):
        raise Refusal("Conv after it pads with zeros, which the shift would change")
    weight = read_weight(node.inputs[1], context.model)
    group = node.attributes.get_int("group", 1)
    outputs, per_group, *kernel = weight.shape
    affine = affine.of(per_group * group)
    shape = (group, outputs // group, per_group, *kernel)
    grouped = weight.astype(np.float64).reshape(shape)
    broadcast = (group, 1, per_group, *[1] * len(kernel))
    fused = (grouped * affine.multiplier.reshape(broadcast)).reshape(weight.shape)
    inner = tuple(range(2, grouped.ndim))
    shift = (grouped * affine.addend.reshape(broadcast)).sum(axis=inner).reshape(-1)
    fusion = Fusion([Edit(node, 1, rounded(fused, weight.dtype, 0))])
    fusion.edits += _bias_edits(node, shift, weight, context)
    return fusion


def _gemm(node: ir.Node, affine: ChannelAffine, context: Context) -> Fusion:
    if node.attributes.get_int("transA", 0):
        raise Refusal("Gemm after it transposes it")
    weight = read_weight(node.inputs[1], context.model)
    transposed = node.attributes.get_int("transB", 0) != 0
    rows = weight.astype(np.float64).T if transposed else weight.astype(np.float64)
    multiplier, addend = _repeated(affine, rows.shape[0])
    fused = rows * multiplier[:, None]
    alpha = np.float64(np.float32(node.attributes.get_float("alpha", 1.0)))
    shift = alpha * (addend @ rows)
    fusion = Fusion(
        [
            Edit(
                node,
                1,
                rounded(fused.T if transposed else fused, weight.dtype, 0 if transposed else 1),
            )
        ]
    )
    if not shift.any():
        return fusion
    old = node.inputs[2] if len(node.inputs) > 2 else None
    if old is not None:
        beta = np.float64(np.float32(node.attributes.get_float("beta", 1.0)))
        shift = read_weight(old, context.model).astype(np.float64) * beta + shift
    fusion.edits.append(Edit(node, 2, _finite(shift, weight)))
    fusion.set_beta(node)
    return fusion


def _matmul(node: ir.Node, affine: ChannelAffine, context: Context) -> Fusion:
    weight = read_weight(node.inputs[1], context.model)
    if weight.ndim != 2:
        raise Refusal("MatMul after it is no matrix product")
    rows = weight.astype(np.float64)
    multiplier, addend = _repeated(affine, rows.shape[0])
    fusion = Fusion([Edit(node, 1, rounded(rows * multiplier[:, None], weight.dtype, 1))])
    shift = addend @ rows
    if shift.any():
        fusion.added = (node.outputs[0], _finite(shift, weight))
    return fusion


def _repeated(affine: ChannelAffine, rows: int) -> tuple[Float64, Float64]:
    """Return the map for each row of a weight, several of which follow a channel after Flatten."""
    channels = affine.multiplier.size
    if rows % channels:
        raise Refusal(f"{channels} channels meet {rows} rows")
    return np.repeat(affine.multiplier, rows // channels), np.repeat(
        affine.addend, rows // channels
    )


def _bias_edits(node: ir.Node, shift: Float64, weight: Array, context: Context) -> list[Edit]:
    if not shift.any():
        return []
    old = node.inputs[2] if len(node.inputs) > 2 else None
    values = shift
    if old is not None:
        values = read_weight(old, context.model).astype(np.float64) + shift
    return [Edit(node, 2, _finite(values, weight))]


def _finite(values: Float64, weight: Array) -> Array:
    with np.errstate(all="ignore"):
        result: Array = values.astype(weight.dtype)
    if not np.isfinite(result.astype(np.float64)).all():
        raise Refusal(f"the fused bias overflows {weight.dtype}")
    return result


_CONSUMERS: dict[str, Callable[[ir.Node, ChannelAffine, Context], Fusion]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
