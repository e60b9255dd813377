"""Keras' constraints: projections of a parameter after each of its updates.

The norm is that of all C values. Keras adds 1e-7 (`keras.backend.epsilon()`) to it before it
divides.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import UsageError
from syncbn_convert.options.keras_objects.configs import read_config, require_number

Float64 = npt.NDArray[np.float64]

NORM_EPSILON = 1e-7
_ONLY_AXES: tuple[Any, ...] = (0, -1, [0], [-1], (0,), (-1,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraint(ABC):
    """A projection."""

    @abstractmethod
    def __call__(self, values: npt.NDArray[Any]) -> Float64:
        """Return the projection of `values`, [C], computed in float64."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonNeg(Constraint):
    """max(w, 0)."""

    def __call__(self, values: npt.NDArray[Any]) -> Float64:
        """Return the projection of `values`, [C]."""
        return np.maximum(values.astype(np.float64), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinMaxNorm(Constraint):
    """w scaled so that its norm moves by `rate` of the way into [min_value, max_value]."""

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: Any = 0

    def __post_init__(self) -> None:
        """Refuse an empty range, a rate outside [0, 1], and an axis that a vector has not."""
        for field in ("min_value", "max_value", "rate"):
            require_number(self, field)
        _require_axis(self, self.axis)
        if not 0 <= self.min_value <= self.max_value or not 0 <= self.rate <= 1:
            raise UsageError(
                f"MinMaxNorm: min_value {self.min_value}, max_value {self.max_value}, rate "
                f"{self.rate}: give 0 <= min_value <= max_value, and a rate from 0 to 1"
            )

    def __call__(self, values: npt.NDArray[Any]) -> Float64:
        """Return the projection of `values`, [C]."""
        wide = values.astype(np.float64)
        norm = np.sqrt(np.square(wide).sum())
        desired = self.rate * np.clip(norm, self.min_value, self.max_value)
        desired += (1.0 - self.rate) * norm
        scaled: Float64 = wide * (desired / (NORM_EPSILON + norm))
        return scaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxNorm(Constraint):
    """w scaled down to a norm of `max_value` where it is above."""

    max_value: float = 2.0
    axis: Any = 0

    def __post_init__(self) -> None:
        """Refuse a negative norm, and an axis that a vector has not."""
        require_number(self, "max_value")
        _require_axis(self, self.axis)
        if self.max_value < 0:
            raise UsageError(f"MaxNorm: max_value {self.max_value} is below 0")

    def __call__(self, values: npt.NDArray[Any]) -> Float64:
        """Return the projection of `values`, [C]."""
        return MinMaxNorm(max_value=self.max_value)(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitNorm(Constraint):
    """w scaled to a norm of 1."""

    axis: Any = 0

    def __post_init__(self) -> None:
        """Refuse an axis that a vector has not."""
        _require_axis(self, self.axis)

    def __call__(self, values: npt.NDArray[Any]) -> Float64:
        """Return the projection of `values`, [C]."""
        wide = values.astype(np.float64)
        scaled: Float64 = wide / (NORM_EPSILON + np.sqrt(np.square(wide).sum()))
        return scaled


def _require_axis(constraint: Constraint, axis: Any) -> None:
    if isinstance(axis, bool) or axis not in _ONLY_AXES:
        raise UsageError(
            f"{type(constraint).__name__}: axis {axis!r}, but a parameter of shape [C] has only "
            "axis 0"
        )


CONSTRAINTS: dict[str, type[Constraint]] = {
    "NonNeg": NonNeg,
    "UnitNorm": UnitNorm,
    "MaxNorm": MaxNorm,
    "MinMaxNorm": MinMaxNorm,
}
"""By the name of Keras' class."""


def constraint_of(given: Any) -> Constraint:
    """Return the constraint that a name or a configuration describes.

    Raises:
        UsageError: if it is unknown or its options are.
    """
    if isinstance(given, Constraint):
        return given
    return read_config(given, CONSTRAINTS, "constraint")
