"""Which constant is which parameter of a normalization."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from syncbn_convert.passes.recognition.forms import MEAN, VARIANCE, Symbols, X
from syncbn_convert.passes.recognition.polynomials import (
    INVERSE_ROOT,
    Monomial,
    Polynomial,
    is_close,
    symbol,
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter, made of a constant that has one value for each channel.

    Attributes:
        value: The constant.
        power: 1, or -1 where the parameter is its reciprocal.
        sign: 1, or -1 where the parameter is its negative.
    """

    value: ir.Value
    power: int = 1
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class Roles:
    """The parameters of (X - mean) / sqrt(variance + epsilon) * scale + bias.

    Attributes:
        epsilon: Added to the variance; None where there is no variance to tell it from.
        scale: None where it is 1.
        bias: None where it is 0.
        mean: None where it is that of the batch, or 0.
        variance: None where it is that of the batch, or not known.
        of_batch: Whether mean and variance are those of the batch.
    """

    epsilon: float | None
    scale: Parameter | None
    bias: Parameter | None
    mean: Parameter | None
    variance: Parameter | None
    of_batch: bool

    @property
    def rank(self) -> tuple[bool, int]:
        """What to compare by: a known variance goes first, then the number of parameters."""
        found = (self.scale, self.bias, self.mean, self.variance)
        return self.epsilon is not None, sum(parameter is not None for parameter in found)


def roles_of(polynomial: Polynomial, symbols: Symbols) -> Roles | None:
    """Return the parameters of a normalization that a polynomial spells; None if it spells none.

    Without a variance there must be both a scale and a bias (or a mean).
    """
    parts = polynomial.by_power_of(X)
    if not {1} <= set(parts) <= {0, 1}:
        return None
    factor = _factor(parts[1], symbols)
    if factor is None:
        return None
    root, scale = factor
    addends = parts[0].terms if 0 in parts else {}
    centre, bias = _addends(addends, parts[1], symbols)
    if len(addends) != (centre is not None) + (bias is not None):
        return None
    variance, epsilon = symbols.roots[root] if root else ("", None)
    of_batch = variance == VARIANCE
    if of_batch != (centre is not None and centre[0] == MEAN):
        return None
    mean = None if centre is None or of_batch else _parameter(*centre, symbols)
    if centre is not None and not of_batch and mean is None:
        return None
    if not root and (scale is None or (bias is None and mean is None)):
        return None
    spread = symbols.constants.get(variance)
    return Roles(
        epsilon,
        scale,
        bias,
        mean,
        Parameter(spread) if spread is not None else None,
        of_batch,
    )


def _factor(polynomial: Polynomial, symbols: Symbols) -> tuple[str, Parameter | None] | None:
    """Return the symbol of the root in what X is multiplied by (or ""), and the scale."""
    if len(polynomial.terms) != 1:
        return None
    ((monomial, coefficient),) = polynomial.terms.items()
    if not is_close(coefficient, 1.0):
        return None
    roots = [(name, power) for name, power in monomial if name.startswith(INVERSE_ROOT)]
    others = [(name, power) for name, power in monomial if not name.startswith(INVERSE_ROOT)]
    if len(roots) > 1 or len(others) > 1 or any(power != 1 for _, power in roots):
        return None
    if not others:
        return (roots[0][0] if roots else "", None)
    name, power = others[0]
    constant = symbols.constants.get(name)
    if constant is None or power not in ((1,) if roots else (1, -1)):
        return None
    return (roots[0][0] if roots else "", Parameter(constant, power))


def _addends(
    addends: dict[Monomial, float] | object, factor: Polynomial, symbols: Symbols
) -> tuple[tuple[str, int] | None, Parameter | None]:
    """Return the symbol and sign of the mean, and the bias, as far as they are found."""
    assert isinstance(addends, dict)
    centre: tuple[str, int] | None = None
    bias: Parameter | None = None
    for monomial, coefficient in addends.items():
        sign = 1 if coefficient > 0 else -1
        if not is_close(abs(coefficient), 1.0):
            continue
        names = [name for name, power in monomial if power > 0]
        mean = next(
            (n for n in names if list(factor.times(symbol(n)).terms) == [monomial]),
            None,
        )
        if mean is not None and centre is None:
            centre = (mean, -sign)
        elif len(monomial) == 1 and monomial[0][1] == 1 and bias is None:
            bias = _parameter(monomial[0][0], sign, symbols)
    return centre, bias


def _parameter(name: str, sign: int, symbols: Symbols) -> Parameter | None:
    value = symbols.constants.get(name)
    return Parameter(value, 1, sign) if value is not None else None
