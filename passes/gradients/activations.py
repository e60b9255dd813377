"""Activation functions.

Masks are multiplied with: ONNX Runtime's Where takes five times as long on a CPU.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import (
    Broadcast,
    Expression,
    Point,
    broadcasting,
    pointwise,
)


@pointwise("Relu")
def relu(at: Point) -> Expression:
    """Zero at 0, as in TensorFlow and torch."""
    return at.dy * at.weight(at.y > 0.0)


@pointwise("LeakyRelu")
def leaky_relu(at: Point) -> Expression:
    """At 0 that of the negative side, as in TensorFlow and torch."""
    alpha = at.attribute("alpha", 0.01)
    return at.dy * (at.weight(at.x > 0.0) * (1.0 - alpha) + alpha)


@broadcasting("PRelu")
def parametric_relu(at: Broadcast, index: int) -> Expression:
    """At 0 that of the negative side, as in torch."""
    x, slope = at.inputs
    positive = x > 0.0
    negative = (~positive).cast(x.dtype)
    if index:
        return at.dy * x * negative
    return at.dy * (positive.cast(x.dtype) + slope * negative)


@pointwise("ThresholdedRelu")
def thresholded_relu(at: Point) -> Expression:
    """Zero at the threshold."""
    return at.dy * at.weight(at.x > at.attribute("alpha", 1.0))


@pointwise("Elu")
def elu(at: Point) -> Expression:
    """At 0 that of the negative side, as in torch."""
    return _exponential_below_zero(at, 1.0, at.y + at.attribute("alpha", 1.0))


@pointwise("Selu")
def selu(at: Point) -> Expression:
    """At 0 that of the negative side, as in torch."""
    alpha = at.attribute("alpha", 1.67326319217681884765625)
    gamma = at.attribute("gamma", 1.05070102214813232421875)
    return _exponential_below_zero(at, gamma, at.y + alpha * gamma)


@pointwise("Celu")
def celu(at: Point) -> Expression:
    """Smooth at 0."""
    return _exponential_below_zero(at, 1.0, at.y / at.attribute("alpha", 1.0) + 1.0)


@pointwise("Sigmoid")
def sigmoid(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.y * (1.0 - at.y)


@pointwise("HardSigmoid")
def hard_sigmoid(at: Point) -> Expression:
    """Zero at both kinks, as in TensorFlow and torch."""
    inside = (at.y > 0.0) & (at.y < 1.0)
    return at.dy * at.attribute("alpha", 0.2) * at.weight(inside)


@pointwise("HardSwish")
def hard_swish(at: Point) -> Expression:
    """Zero at -3 and one at 3, as in torch."""
    inside, above = at.weight(at.x.apply("Abs") < 3.0), at.weight(at.x >= 3.0)
    return at.dy * (inside * (at.x / 3.0 + 0.5) + above)


@pointwise("Swish")
def swish(at: Point) -> Expression:
    """Any alpha."""
    alpha = at.attribute("alpha", 1.0)
    gate = (at.x * alpha).apply("Sigmoid")
    return at.dy * (gate + alpha * at.y * (1.0 - gate))


@pointwise("Mish")
def mish(at: Point) -> Expression:
    """Any input."""
    softplus = at.x.apply("Relu") + (1.0 + (-at.x.apply("Abs")).apply("Exp")).apply("Log")
    gate = softplus.apply("Tanh")
    return at.dy * (gate + at.x * (1.0 - gate * gate) * at.x.apply("Sigmoid"))


@pointwise("Tanh")
def tanh(at: Point) -> Expression:
    """Any input."""
    return at.dy * (1.0 - at.y * at.y)


@pointwise("Softplus")
def softplus(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.x.apply("Sigmoid")


@pointwise("Softsign")
def softsign(at: Point) -> Expression:
    """Any input."""
    width = at.x.apply("Abs") + 1.0
    return at.dy / (width * width)


@pointwise("Gelu")
def gelu(at: Point) -> Expression:
    """Exact and tanh."""
    gate = _gelu_gate(at)
    square = at.x * at.x
    if at.node.attributes.get_string("approximate", "none") == "tanh":
        slope = (square * (3 * 0.044715) + 1.0) * (2.0 * math.sqrt(2.0 / math.pi))
        return at.dy * (gate + at.x * gate * (1.0 - gate) * slope)
    density = (square * -0.5).apply("Exp") * (1.0 / math.sqrt(2.0 * math.pi))
    return at.dy * (gate + at.x * density)


def _gelu_gate(at: Point) -> Expression:
    """Return what x was multiplied with, y / x; ONNX Runtime has no Erf in float64."""
    smallest_normal = 2.0**-14 if at.x.dtype == ir.DataType.FLOAT16 else 2.0**-126
    vanishing = at.x.apply("Abs") < smallest_normal
    return vanishing.choose(0.5, at.y / vanishing.choose(1.0, at.x))


def _exponential_below_zero(at: Point, above: float, below: Expression) -> Expression:
    positive = at.x > 0.0
    return at.dy * (at.weight(positive) * above + at.weight(~positive) * below)
