"""Activation functions."""

from __future__ import annotations

from syncbn_convert.passes.gradients.expression import Expression, Point, pointwise


@pointwise("Relu")
def relu(at: Point) -> Expression:
    """Zero at 0, as in TensorFlow and torch."""
    return (at.y > 0.0).choose(at.dy, 0.0)


@pointwise("Sigmoid")
def sigmoid(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.y * (1.0 - at.y)


@pointwise("Tanh")
def tanh(at: Point) -> Expression:
    """Any input."""
    return at.dy * (1.0 - at.y * at.y)


@pointwise("Softplus")
def softplus(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.x.apply("Sigmoid")
