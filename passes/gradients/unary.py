"""Functions of one variable."""

from __future__ import annotations

import math

from syncbn_convert.passes.gradients.expression import Expression, Point, pointwise


@pointwise("Erf")
def error_function(at: Point) -> Expression:
    """Any input."""
    return at.dy * (2.0 / math.sqrt(math.pi)) * (-(at.x * at.x)).apply("Exp")


@pointwise("Sin")
def sine(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.x.apply("Cos")


@pointwise("Cos")
def cosine(at: Point) -> Expression:
    """Any input."""
    return -(at.dy * at.x.apply("Sin"))


@pointwise("Tan")
def tangent(at: Point) -> Expression:
    """Any input."""
    return at.dy * (1.0 + at.y * at.y)


@pointwise("Asin")
def arcsine(at: Point) -> Expression:
    """Infinite at -1 and 1."""
    return at.dy / (1.0 - at.x * at.x).apply("Sqrt")


@pointwise("Acos")
def arccosine(at: Point) -> Expression:
    """Infinite at -1 and 1."""
    return -(at.dy / (1.0 - at.x * at.x).apply("Sqrt"))


@pointwise("Atan")
def arctangent(at: Point) -> Expression:
    """Any input."""
    return at.dy / (1.0 + at.x * at.x)


@pointwise("Sinh")
def hyperbolic_sine(at: Point) -> Expression:
    """Any input."""
    return at.dy * 0.5 * (at.x.apply("Exp") + (-at.x).apply("Exp"))


@pointwise("Cosh")
def hyperbolic_cosine(at: Point) -> Expression:
    """Any input."""
    return at.dy * at.y * at.x.apply("Tanh")


@pointwise("Asinh")
def inverse_hyperbolic_sine(at: Point) -> Expression:
    """Any input."""
    return at.dy / (at.x * at.x + 1.0).apply("Sqrt")


@pointwise("Acosh")
def inverse_hyperbolic_cosine(at: Point) -> Expression:
    """Infinite at 1."""
    return at.dy / (at.x * at.x - 1.0).apply("Sqrt")


@pointwise("Atanh")
def inverse_hyperbolic_tangent(at: Point) -> Expression:
    """Infinite at -1 and 1."""
    return at.dy / (1.0 - at.x * at.x)
