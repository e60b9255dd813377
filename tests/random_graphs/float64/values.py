"""Values in float64 with how far a narrower type may be away, and the table of operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Attributes = Mapping[str, Any]

ROUNDINGS = 4.0
"""Of one operator, besides those of its sums: a weight, a bias, a factor and the result."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A value.

    Attributes:
        value: In float64, or whole numbers and truth values as they are.
        dtype: Element type in the model.
        size: Magnitudes that were added up, like `value`.
        error: Relative to `size`.
        origin: What made it, for a normalization's parameters: its name in the main graph, or where
            it is.
    """

    value: Array
    dtype: np.dtype[Any]
    size: Float64
    error: float = 0.0
    origin: str = ""

    @property
    def unit(self) -> float:
        """The rounding of its type."""
        return float(np.finfo(self.dtype).eps) / 2 if self.is_float else 0.0

    @property
    def is_float(self) -> bool:
        """Whether it is rounded."""
        return np.issubdtype(self.dtype, np.floating)

    @property
    def tolerance(self) -> float:
        """How far any of its elements may be away."""
        return self.error * float(self.size.max(initial=0.0))

    def moved(self, move: Callable[[Array], Array]) -> Known:
        """Return it with its elements elsewhere."""
        return dataclasses.replace(self, value=move(self.value), size=move(self.size))


def given(array: Array, origin: str = "") -> Known:
    """Return an array as a value that is exact."""
    if np.issubdtype(array.dtype, np.floating):
        wide = array.astype(np.float64)
        return Known(wide, array.dtype, np.abs(wide), origin=origin)
    return Known(array, array.dtype, np.zeros(array.shape), origin=origin)


def along(values: Array, rank: int) -> Array:
    return values.reshape([-1 if axis == 1 else 1 for axis in range(rank)])


def computed(x: Known) -> float:
    """The rounding of what is computed: half types are computed in float32."""
    return min(x.unit, float(np.finfo(np.float32).eps) / 2)


@dataclasses.dataclass(frozen=True)
class Site:
    """What an operator knows of its node."""

    attributes: Attributes
    opset: int
    outputs: int

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """Return a list."""
        return list(self.attributes.get(name, default))

    def axes(self, known: Known | None) -> list[int] | None:
        """Return axes that are an attribute or an input."""
        if known is not None:
            return [int(axis) for axis in known.value]
        return self.ints("axes", ()) or None


Operator = Callable[..., Known | Sequence[Known]]
OPERATORS: dict[str, Operator] = {}


def operator(*op_types: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(op_types, function))
        return function

    return register
