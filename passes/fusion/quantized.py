"""Weights behind DequantizeLinear: the map per channel goes into their scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import graphs
from syncbn_convert.passes.fusion.affine import Float64, Refusal
from syncbn_convert.passes.fusion.edits import Fusion
from syncbn_convert.passes.fusion.scaled import scaled
from syncbn_convert.passes.fusion.weights import Array, Edit, read_weight

_FIRST_OPSET_OF_SCALES_PER_CHANNEL = 13


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """A constant integer weight and how it is dequantized.

    Attributes:
        node: The DequantizeLinear.
        shape: Of the weight.
        real: Its scale, in the type that it is dequantized to: [] or [C].
        zero_point: In the integer type; None where it is 0.
    """

    node: ir.Node
    shape: tuple[int, ...]
    real: ir.TensorProtocol
    zero_point: Array | None

    def scaled(self, multiplier: Float64, axis: int, opset: int) -> Fusion:
        """Return how the weight is multiplied along `axis`.

        Raises:
            Refusal: if it is dequantized along another axis, or the scale would not be positive.
        """
        if "block_size" in self.node.attributes and self.node.attributes["block_size"].as_int():
            raise Refusal("its weights are dequantized in blocks")
        if (multiplier <= 0).any():
            raise Refusal("a scale of its quantized weights would not be above 0")
        own_axis = self.node.attributes.get_int("axis", 1) % len(self.shape)
        if self.real.size > 1 and own_axis != axis:
            raise Refusal("its weights are dequantized along another axis than the channels")
        if opset < _FIRST_OPSET_OF_SCALES_PER_CHANNEL:
            raise Refusal(f"opset {opset} has no scale for each channel")
        scales = np.broadcast_to(self.real.numpy(), multiplier.shape)
        fused = scaled(ir.tensor(scales, dtype=self.real.dtype), multiplier, 0)
        fusion = Fusion([Edit(self.node, 1, fused)])
        if self.zero_point is not None and self.zero_point.size != multiplier.size:
            expanded = np.broadcast_to(self.zero_point, multiplier.shape).copy()
            fusion.edits.append(Edit(self.node, 2, ir.tensor(expanded)))
        if own_axis != axis:
            fusion.attributes.append((self.node, ir.AttrInt64("axis", axis)))
        return fusion


def quantized_weight(node: ir.Node, index: int, model: ir.Model) -> QuantizedWeight | None:
    """Return the weight of a node if it comes from a DequantizeLinear of constants; else None.

    Raises:
        Refusal: if something else reads it too, or a part of it is not constant.
    """
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "DequantizeLinear":
        return None
    if producer.domain not in graphs.STANDARD_DOMAINS:
        return None
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Refusal("its quantized weights are read elsewhere too")
    zero_point = producer.inputs[2] if len(producer.inputs) > 2 else None
    return QuantizedWeight(
        producer,
        tuple(read_weight(producer.inputs[0], model).shape.numpy()),
        read_weight(producer.inputs[1], model),
        read_weight(zero_point, model).numpy() if zero_point is not None else None,
    )
