"""What the gradients of all normalizations share; computed in float32 or wider."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.form.batchnorm import DEFAULTS
from syncbn_convert.passes.gradients.expression import Expression, arriving, forward
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients


@dataclasses.dataclass(frozen=True)
class Standardized:
    """What has mean 0 and variance 1 over some axes.

    Attributes:
        normal: (x - mean) * inverse.
        inverse: 1 / sqrt(variance + epsilon).
        axes: What the statistics are over, int64.
    """

    normal: Expression
    inverse: Expression
    axes: ir.Value

    def input_gradient(self, slope: Expression) -> Expression:
        """Return the gradient of x, given that of `normal`."""
        along = self.normal * _mean(slope * self.normal, self.axes)
        return (slope - _mean(slope, self.axes) - along) * self.inverse


def standardize(x: Expression, axes: Sequence[int], epsilon: float) -> Standardized:
    """Normalize again as the forward node does."""
    over = x.tape.ints(*axes)
    centred = x - _mean(x, over)
    inverse = 1.0 / (_mean(centred * centred, over) + epsilon).apply("Sqrt")
    return Standardized(centred * inverse, inverse, over)


@dataclasses.dataclass(frozen=True)
class Normalized:
    """Where a normalization with scale and bias is differentiated.

    Attributes:
        tape: What nodes are written on.
        node: The forward node.
        x: Its input, float32 or wider.
        dy: The gradient of its first output, likewise.
        epsilon: What is added to the variance.
    """

    tape: GradientTape
    node: ir.Node
    x: Expression
    dy: Expression
    epsilon: float

    @classmethod
    def of_node(cls, tape: GradientTape, node: ir.Node, gradients: Gradients) -> Normalized:
        """Read a node."""
        x, dy = forward(tape, node.inputs[0]), arriving(tape, node, gradients)
        wide = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        epsilon = node.attributes.get_float("epsilon", DEFAULTS["epsilon"])
        return cls(tape, node, x.cast(wide), dy.cast(wide), epsilon)

    @property
    def rank(self) -> int:
        """Rank of its input."""
        x = self.node.inputs[0]
        assert x is not None
        return self.tape.rank(x)

    def input(self, index: int) -> Expression:
        """Return an input in the type that is computed in."""
        return forward(self.tape, self.node.inputs[index]).cast(self.x.dtype)

    def narrow(self, found: Expression, index: int) -> ir.Value:
        """Return the gradient of an input in that input's type."""
        return found.cast(forward(self.tape, self.node.inputs[index]).dtype).value

    def gradients(self, dx: Expression, terms: Expression, axes: Sequence[int]) -> Gradients:
        """Return the gradients of x, and of scale and bias [C].

        Args:
            dx: The gradient of x.
            terms: What the gradient of scale is the sum of.
            axes: All but the channels.
        """
        found: list[ir.Value | None] = [None] * len(self.node.inputs)
        if self.tape.wants(self.node, 0):
            found[0] = self.narrow(dx, 0)
        for index, product in ((1, terms), (2, self.dy)):
            if self.tape.wants(self.node, index):
                over = self.tape.ints(*axes)
                summed = self.tape.op("ReduceSum", product.value, over, keepdims=0)
                found[index] = self.narrow(Expression(self.tape, summed, product.dtype), index)
        return found


def aligned(value: Expression, shape: ir.Value) -> Expression:
    """Return a value in another shape, int64."""
    reshaped = value.tape.op("Reshape", value.value, shape, allowzero=1)
    return Expression(value.tape, reshaped, value.dtype)


def only_through_y(tape: GradientTape, node: ir.Node, gradients: Gradients) -> None:
    """Refuse a node whose statistics the loss depends on."""
    if any(gradient is not None for gradient in gradients[1:]):
        tape.refuse(
            node,
            "the loss depends on its statistics",
            "let the loss depend on its first output alone",
        )


def _mean(value: Expression, axes: ir.Value) -> Expression:
    mean = value.tape.op("ReduceMean", value.value, axes, keepdims=1)
    return Expression(value.tape, mean, value.dtype)
