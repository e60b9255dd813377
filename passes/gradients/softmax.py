"""Softmax and its logarithm."""

from __future__ import annotations

from syncbn_convert.passes.gradients.expression import Expression, Point, pointwise


@pointwise("Softmax")
def softmax(at: Point) -> Expression:
    """Any axis."""
    product = at.dy * at.y
    return product - at.y * _sum(at, product)


@pointwise("LogSoftmax")
def log_softmax(at: Point) -> Expression:
    """Any axis."""
    return at.dy - at.y.apply("Exp") * _sum(at, at.dy)


def _sum(at: Point, terms: Expression) -> Expression:
    """Sum over the node's axis, which stays as one of size 1."""
    axis = at.node.attributes.get_int("axis", -1)
    total = terms.tape.op("ReduceSum", terms.value, terms.tape.ints(axis), keepdims=1)
    return Expression(terms.tape, total, terms.dtype)
