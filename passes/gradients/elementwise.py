"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

import functools
import operator

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import (
    Broadcast,
    Expression,
    Point,
    arriving,
    broadcasting,
    forward,
    pointwise,
)
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@broadcasting("Add", "Sum")
def add(at: Broadcast, _index: int) -> Expression:
    """Any broadcasting."""
    return at.dy


@broadcasting("Sub")
def subtract(at: Broadcast, index: int) -> Expression:
    """Any broadcasting."""
    return -at.dy if index else at.dy


@broadcasting("Mul")
def multiply(at: Broadcast, index: int) -> Expression:
    """Any broadcasting."""
    return at.dy * at.inputs[1 - index]


@broadcasting("Div")
def divide(at: Broadcast, index: int) -> Expression:
    """Any broadcasting."""
    quotient = at.dy / at.inputs[1]
    return -(quotient * at.y) if index else quotient


@broadcasting("Mean")
def mean(at: Broadcast, _index: int) -> Expression:
    """Any broadcasting."""
    return at.dy * (1 / len(at.inputs))


@broadcasting("Max", "Min")
def extremum(at: Broadcast, index: int) -> Expression:
    """Inputs that tie share the gradient evenly, as in torch."""
    held = [operand.equals(at.y).cast(at.y.dtype) for operand in at.inputs]
    return at.dy * held[index] / functools.reduce(operator.add, held)


@broadcasting("Pow")
def power(at: Broadcast, index: int) -> Expression:
    """Zero for the base where the exponent is 0, for the exponent where the base is at most 0."""
    base, exponent = at.inputs[0], at.inputs[1].cast(at.y.dtype)
    if index:
        positive = base > 0
        logarithm = positive.choose(base, 1.0).apply("Log")
        return (at.dy * at.y * logarithm).cast(at.inputs[1].dtype)
    if _is_square(at):
        return at.dy * base * 2.0
    slope = exponent * Expression(
        base.tape, base.tape.op("Pow", base.value, (exponent - 1.0).value), base.dtype
    )
    return exponent.equals(0.0).choose(0.0, at.dy * slope)


def _is_square(at: Broadcast) -> bool:
    """Whether a Pow squares, whatever is trained; Mul is many times as fast as Pow."""
    tape, exponent = at.y.tape, at.inputs[1].value
    known = None if tape.wants(at.node, 1) else tape.known(exponent)
    return known is not None and known.size == 1 and bool(known.item() == 2)


@pointwise("Neg")
def negate(at: Point) -> Expression:
    """Any type."""
    return -at.dy


@pointwise("Abs")
def absolute(at: Point) -> Expression:
    """Zero at 0, as in TensorFlow and torch."""
    return at.dy * at.x.apply("Sign")


@pointwise("Reciprocal")
def reciprocal(at: Point) -> Expression:
    """Any input."""
    return -(at.dy * at.y * at.y)


@pointwise("Sqrt")
def square_root(at: Point) -> Expression:
    """Infinite at 0."""
    return at.dy * 0.5 / at.y


@pointwise("Exp")
def exponential(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.y


@pointwise("Log")
def logarithm(at: Point) -> Expression:
    """Infinite at 0."""
    return at.dy / at.x


@gradient("Identity")
def identity(_tape: GradientTape, _node: ir.Node, gradients: Gradients) -> Gradients:
    """Tensors."""
    return [gradients[0]]


@gradient("Cast", "CastLike")
def cast(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Between floating-point types; nothing flows through others."""
    dtype = tape.dtype(node.outputs[0])
    if not dtype.is_floating_point() or not tape.wants(node, 0):
        return [None] * len(node.inputs)
    dx = arriving(tape, node, gradients).cast(forward(tape, node.inputs[0]).dtype)
    return [dx.value, *[None] * (len(node.inputs) - 1)]
