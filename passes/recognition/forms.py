"""What values are in terms of one input X, its batch statistics, and constants."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from syncbn_convert.passes.recognition.polynomials import INVERSE_ROOT, Polynomial, symbol

CHANNEL = -1
"""Stands for the channel axis among the axes of a form."""
X, MEAN, VARIANCE = "X", "mean of X", "variance of X"

Axes = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """A value.

    Attributes:
        polynomial: What it is in each element, or for each channel.
        axes: For each of its axes the axis of X that it is, CHANNEL for that of the channels, and
            None where the size is 1.
    """

    polynomial: Polynomial
    axes: Axes

    @property
    def is_input(self) -> bool:
        """Whether it is X itself, perhaps transposed."""
        return self.polynomial == symbol(X)

    @property
    def holds_input(self) -> bool:
        """Whether it depends on the elements of X."""
        return X in self.polynomial.symbols


class Symbols:
    """The symbols of constants and of inverse roots, shared by all forms of one model."""

    def __init__(self) -> None:
        self.constants: dict[str, ir.Value] = {}
        self.roots: dict[str, tuple[str, float]] = {}

    def of_constant(self, value: ir.Value) -> Polynomial:
        """Return the symbol of a constant with one value for each channel."""
        name = f"constant {value.name}"
        self.constants[name] = value
        return symbol(name)

    def of_root(self, polynomial: Polynomial) -> Polynomial | None:
        """Return the symbol of 1 / sqrt(variance + epsilon); None where it is no such sum."""
        terms = dict(polynomial.terms)
        epsilon = terms.pop((), 0.0)
        if len(terms) != 1 or not epsilon > 0:
            return None
        ((monomial, coefficient),) = terms.items()
        if coefficient != 1.0 or len(monomial) != 1 or monomial[0][1] != 1:
            return None
        variance = monomial[0][0]
        if variance != VARIANCE and variance not in self.constants:
            return None
        name = f"{INVERSE_ROOT}({variance} + {epsilon!r})"
        self.roots[name] = (variance, epsilon)
        return symbol(name)

    def reciprocal(self, polynomial: Polynomial) -> Polynomial | None:
        """Return 1 / polynomial, or None."""
        if X in polynomial.symbols or not polynomial.terms:
            return None
        found = polynomial.inverse()
        if found is None:
            root = self.of_root(polynomial)
            found = root.times(root) if root is not None else None
        return found

    def square_root(self, polynomial: Polynomial) -> Polynomial | None:
        """Return the root of a polynomial, or None."""
        root = self.of_root(polynomial)
        return root.inverse() if root is not None else polynomial.root()


def broadcast(one: Axes, two: Axes) -> Axes | None:
    """Return the axes of what an elementwise operator returns; None where they do not fit."""
    rank = max(len(one), len(two))
    first, second = ((None,) * (rank - len(axes)) + axes for axes in (one, two))
    merged: list[int | None] = []
    for left, right in zip(first, second, strict=True):
        if left is not None and right is not None and left != right:
            return None
        merged.append(left if left is not None else right)
    return tuple(merged)
