"""The operators with weights: which input is the weight, which of its axes are channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted:
    """An operator whose first input is multiplied by a weight.

    Axes may be counted from the end.

    Attributes:
        op_type: Its name in ONNX.
        weight: Index of the input that is the weight.
        bias: Index of the input that is added to each channel; None where there is none.
        channel_axis: Axis of the output that the weight makes.
        outputs: Axis of the weight with the channels of the output.
        inputs: Axis of the weight with the channels of the input, which are summed over.
        swapped_by: Attribute that swaps these two; None where there is none.
        per_group: Which of the two counts the channels of one group; None without groups.
    """

    op_type: str
    weight: int = 1
    bias: int | None
    channel_axis: int
    outputs: int
    inputs: int
    swapped_by: str | None = None
    per_group: int | None = None

    @property
    def is_convolution(self) -> bool:
        """Whether spatial axes follow the two; the others are products of matrices."""
        return self.per_group is not None

    def channels_at(self, rank: int) -> int:
        """Return the channel axis of an output of `rank` axes, counted from the start."""
        return _from_start(self.channel_axis, rank)

    def output_axis(self, node: ir.Node, rank: int) -> int:
        """Return the axis of a node's weight, of `rank` axes, with the channels of the output."""
        return _from_start(self.inputs if self._is_swapped(node) else self.outputs, rank)

    def input_axis(self, node: ir.Node, rank: int) -> int:
        """Return the axis of a node's weight, of `rank` axes, that is summed over."""
        return _from_start(self.outputs if self._is_swapped(node) else self.inputs, rank)

    def output_channels(self, node: ir.Node, shape: Sequence[int]) -> int:
        """Return how many channels a node with a weight of `shape` makes."""
        axis = self.output_axis(node, len(shape))
        groups = node.attributes.get_int("group", 1) if axis == self.per_group else 1
        return shape[axis] * groups

    def bias_of(self, node: ir.Node) -> ir.Value | None:
        """Return what a node adds to each channel, or None."""
        if self.bias is None or len(node.inputs) <= self.bias:
            return None
        return node.inputs[self.bias]

    def _is_swapped(self, node: ir.Node) -> bool:
        return self.swapped_by is not None and bool(node.attributes.get_int(self.swapped_by, 0))


CONV = Weighted(op_type="Conv", bias=2, channel_axis=1, outputs=0, inputs=1, per_group=1)
CONV_TRANSPOSE = Weighted(
    op_type="ConvTranspose", bias=2, channel_axis=1, outputs=1, inputs=0, per_group=1
)
GEMM = Weighted(op_type="Gemm", bias=2, channel_axis=1, outputs=1, inputs=0, swapped_by="transB")
MATMUL = Weighted(op_type="MatMul", bias=None, channel_axis=-1, outputs=-1, inputs=-2)

OPERATORS: Mapping[str, Weighted] = {
    operator.op_type: operator for operator in (CONV, CONV_TRANSPOSE, GEMM, MATMUL)
}


def _from_start(axis: int, rank: int) -> int:
    return axis if axis >= 0 else axis + rank
