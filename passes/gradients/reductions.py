"""Reductions over axes, given as an input, constant or computed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import Expression, arriving, forward
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, Rule, gradient


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Where a reduction is differentiated.

    Attributes:
        tape: What nodes are written on.
        node: The forward node.
        x: Its input.
        y: Its output, with the reduced axes kept as ones of size 1.
        dy: The gradient of its output, likewise.
    """

    tape: GradientTape
    node: ir.Node
    x: Expression
    y: Expression
    dy: Expression

    def count(self) -> Expression:
        """Return how many elements of the input make one of the output."""
        sizes = [
            self.tape.op("Cast", self.tape.op("Size", value), to=int(self.x.dtype))
            for value in (self.x.value, self.node.outputs[0])
        ]
        return Expression(self.tape, self.tape.op("Div", *sizes), self.x.dtype)

    def again(self, op_type: str, operand: Expression) -> Expression:
        """Return another reduction over the same axes, which are kept."""
        reduced = self.tape.op(
            op_type,
            operand.value,
            *self.node.inputs[1:],
            keepdims=1,
            noop_with_empty_axes=self.node.attributes.get_int("noop_with_empty_axes", 0),
        )
        return Expression(self.tape, reduced, operand.dtype)

    def expand(self, gradient: Expression) -> Expression:
        """Return a gradient of the shape of `y` in the shape of `x`."""
        shape = self.tape.shape_of(self.x.value)
        return Expression(self.tape, self.tape.op("Expand", gradient.value, shape), self.x.dtype)


def reduction(*op_types: str) -> Callable[[Callable[[Reduction], Expression]], Rule]:
    """Register the decorated function, which returns dX, as the rule of reductions."""

    def register(derive: Callable[[Reduction], Expression]) -> Rule:
        @gradient(*op_types)
        @functools.wraps(derive)
        def rule(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
            y, dy = forward(tape, node.outputs[0]), arriving(tape, node, gradients)
            x = forward(tape, node.inputs[0])
            at = Reduction(tape, node, x, _keep_axes(node, y), _keep_axes(node, dy))
            return [derive(at).value, *[None] * (len(node.inputs) - 1)]

        return rule

    return register


@reduction("ReduceSum")
def reduce_sum(at: Reduction) -> Expression:
    """Any axes, also computed ones."""
    return at.expand(at.dy)


@reduction("ReduceMean")
def reduce_mean(at: Reduction) -> Expression:
    """Any axes, also computed ones."""
    return at.expand(at.dy / at.count())


@reduction("ReduceMax", "ReduceMin")
def reduce_extremum(at: Reduction) -> Expression:
    """Elements that tie share the gradient evenly, as in TensorFlow and torch.amax."""
    held = at.x.equals(at.y).cast(at.x.dtype)
    return held * (at.dy / at.again("ReduceSum", held))


@reduction("ReduceL1")
def reduce_l1(at: Reduction) -> Expression:
    """Zero at 0."""
    return at.dy * at.x.apply("Sign")


@reduction("ReduceL2")
def reduce_l2(at: Reduction) -> Expression:
    """Zero where the norm is 0, as in torch."""
    vanishing = at.y.equals(0.0)
    return at.x * (at.dy / vanishing.choose(1.0, at.y))


@reduction("ReduceSumSquare")
def reduce_sum_square(at: Reduction) -> Expression:
    """Any axes, also computed ones."""
    return at.x * (at.dy * 2.0)


@reduction("ReduceProd")
def reduce_product(at: Reduction) -> Expression:
    """Exact with zeros among the factors."""
    zero = at.x.equals(0.0)
    zeros = zero.cast(at.x.dtype)
    factors = zero.choose(1.0, at.x)
    only = (at.again("ReduceSum", zeros) - zeros).equals(0.0).cast(at.x.dtype)
    return at.dy * at.again("ReduceProd", factors) / factors * only


@reduction("ReduceLogSum")
def reduce_log_sum(at: Reduction) -> Expression:
    """Any axes, also computed ones."""
    return at.expand(at.dy * (-at.y).apply("Exp"))


@reduction("ReduceLogSumExp")
def reduce_log_sum_exp(at: Reduction) -> Expression:
    """Any axes, also computed ones."""
    return at.dy * (at.x - at.y).apply("Exp")


def _keep_axes(node: ir.Node, reduced: Expression) -> Expression:
    """Put axes of size 1 where axes were reduced away.

    What was reduced over all axes is a scalar, which broadcasts as it is.
    """
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if node.attributes.get_int("keepdims", 1) or axes is None:
        return reduced
    kept = reduced.tape.op("Unsqueeze", reduced.value, axes)
    return Expression(reduced.tape, kept, reduced.dtype)
