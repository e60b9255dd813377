"""Polynomials against numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from syncbn_convert.passes.recognition.forms import MEAN, VARIANCE, Symbols, X, broadcast
from syncbn_convert.passes.recognition.polynomials import Polynomial, number, symbol

POINT = {"a": 1.5, "b": -0.75, "c": 2.25}


def at(polynomial: Polynomial, point: Mapping[str, float]) -> float:
    """Evaluate a polynomial."""
    return sum(
        coefficient * math.prod(point[name] ** power for name, power in monomial)
        for monomial, coefficient in polynomial.terms.items()
    )


def test_arithmetic() -> None:
    a, b, c = (symbol(name) for name in "abc")
    one = a.plus(b.times(number(2.0)), -1.0)
    two = c.plus(number(-3.0)).times(a)
    for found, wanted in (
        (one, 1.5 + 2 * 0.75),
        (two, (2.25 - 3) * 1.5),
        (one.times(two), (1.5 + 2 * 0.75) * (2.25 - 3) * 1.5),
        (one.plus(two), 1.5 + 2 * 0.75 + (2.25 - 3) * 1.5),
    ):
        assert math.isclose(at(found, POINT), wanted, rel_tol=1e-15)


def test_what_cancels_is_gone() -> None:
    a, b = symbol("a"), symbol("b")
    square = a.plus(b).times(a.plus(b))
    rest = square.plus(a.times(a), -1.0).plus(b.times(b), -1.0)
    assert rest == a.times(b).times(number(2.0))
    assert rest.plus(rest, -1.0).number == 0.0
    assert number(0.1).plus(number(0.2)).plus(number(0.3), -1.0).number == 0.0


def test_inverse_is_of_one_term_only() -> None:
    a, b = symbol("a"), symbol("b")
    inverse = a.times(b).times(number(4.0)).inverse()
    assert inverse is not None
    assert math.isclose(at(inverse, POINT), 1 / (4 * 1.5 * -0.75), rel_tol=1e-15)
    assert a.plus(b).inverse() is None


def test_powers_of_a_symbol() -> None:
    x, a = symbol("x"), symbol("a")
    powers = x.times(x).times(a).plus(x).plus(a).by_power_of("x")
    assert powers == {2: a, 1: number(1.0), 0: a}


def test_root_of_a_variance_only() -> None:
    symbols = Symbols()
    variance, epsilon = symbol(VARIANCE), number(1e-3)
    deviation = symbols.square_root(variance.plus(epsilon))
    inverse = symbols.reciprocal(variance.plus(epsilon))
    assert deviation is not None
    assert inverse is not None
    assert deviation.times(deviation).times(inverse) == number(1.0)
    assert symbols.square_root(inverse) == deviation.inverse()
    for other in (
        variance,
        variance.plus(epsilon, -1.0),
        variance.times(number(1.1)).plus(epsilon),
        symbol(MEAN).plus(epsilon),
        symbol(X).plus(epsilon),
        variance.times(variance).plus(epsilon),
    ):
        assert symbols.square_root(other) is None


def test_axes_have_to_fit() -> None:
    assert broadcast((0, -1, 2), (-1, None)) == (0, -1, 2)
    assert broadcast((0, 2, -1), (-1,)) == (0, 2, -1)
    assert broadcast((0, -1, 2), (-1,)) is None
