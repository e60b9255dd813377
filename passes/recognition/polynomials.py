"""Polynomials with powers of either sign: what a node of a normalization computes per channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

Monomial = tuple[tuple[str, int], ...]
"""Symbols with their powers, sorted; none is 0."""

_ROUNDING = 1e-12
"""Relative: coefficients are products of a few exact numbers in float64."""


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """A sum of monomials.

    Attributes:
        terms: Coefficients by monomial; none is 0.
    """

    terms: Mapping[Monomial, float]

    def plus(self, other: Polynomial, sign: float = 1.0) -> Polynomial:
        """Return the sum, `other` times `sign`."""
        return _collected([*self.terms.items(), *((m, sign * c) for m, c in other.terms.items())])

    def times(self, other: Polynomial) -> Polynomial:
        """Return the product."""
        return _collected(
            (_product(one, two), first * second)
            for one, first in self.terms.items()
            for two, second in other.terms.items()
        )

    def inverse(self) -> Polynomial | None:
        """Return 1 / itself; None where that is no polynomial."""
        if len(self.terms) != 1:
            return None
        ((monomial, coefficient),) = self.terms.items()
        return Polynomial({tuple((name, -power) for name, power in monomial): 1.0 / coefficient})

    def root(self) -> Polynomial | None:
        """Return the square root of an even power of one symbol that is positive; else None."""
        if len(self.terms) != 1 or self.number is not None:
            return None
        ((monomial, coefficient),) = self.terms.items()
        even = all(power % 2 == 0 and name.startswith(INVERSE_ROOT) for name, power in monomial)
        if coefficient != 1.0 or not even:
            return None
        return Polynomial({tuple((name, power // 2) for name, power in monomial): 1.0})

    @property
    def number(self) -> float | None:
        """The number that it is; None where it has symbols."""
        if not self.terms:
            return 0.0
        return self.terms[()] if list(self.terms) == [()] else None

    @property
    def symbols(self) -> set[str]:
        """The symbols in it."""
        return {name for monomial in self.terms for name, _ in monomial}

    def by_power_of(self, symbol: str) -> dict[int, Polynomial]:
        """Return the factors of each power of `symbol`."""
        found: dict[int, dict[Monomial, float]] = {}
        for monomial, coefficient in self.terms.items():
            power = dict(monomial).get(symbol, 0)
            rest = tuple(entry for entry in monomial if entry[0] != symbol)
            found.setdefault(power, {})[rest] = coefficient
        return {power: Polynomial(terms) for power, terms in found.items()}


INVERSE_ROOT = "1/sqrt "
"""How the symbol of 1 / sqrt(variance + epsilon) begins."""


def number(value: float) -> Polynomial:
    """Return a constant polynomial."""
    return Polynomial({(): value} if value else {})


def symbol(name: str, power: int = 1) -> Polynomial:
    """Return a power of one symbol."""
    return Polynomial({((name, power),): 1.0})


def is_close(value: float, wanted: float) -> bool:
    """Whether a coefficient is `wanted`, but for rounding."""
    return abs(value - wanted) <= _ROUNDING * max(abs(wanted), 1.0)


def _product(one: Monomial, two: Monomial) -> Monomial:
    powers = dict(one)
    for name, power in two:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def _collected(terms: Iterable[tuple[Monomial, float]]) -> Polynomial:
    found: dict[Monomial, float] = {}
    largest: dict[Monomial, float] = {}
    for monomial, coefficient in terms:
        found[monomial] = found.get(monomial, 0.0) + coefficient
        largest[monomial] = max(largest.get(monomial, 0.0), abs(coefficient))
    return Polynomial(
        {
            monomial: coefficient
            for monomial, coefficient in found.items()
            if abs(coefficient) > _ROUNDING * largest[monomial]
        }
    )
