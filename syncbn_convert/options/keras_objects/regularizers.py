"""Keras' regularizers: `l1 * sum(|w|) + l2 * sum(w^2)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import UsageError
from syncbn_convert.options.keras_objects.configs import read_config, require_number

_DEFAULT = 0.01
"""Of Keras' L1 and L2, and of the bare name `l1_l2` of tf_keras; its L1L2 has 0 for both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularizer:
    """Penalty of a parameter.

    Attributes:
        l1: Factor of the sum of magnitudes.
        l2: Factor of the sum of squares.
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what Keras refuses."""
        for field in ("l1", "l2"):
            require_number(self, field)
            if getattr(self, field) < 0:
                raise UsageError(f"Regularizer: {field} {getattr(self, field)} is below 0")

    def __call__(self, values: npt.NDArray[Any]) -> float:
        """Return the penalty of `values`, computed in float64."""
        wide = values.astype(np.float64)
        return float(self.l1 * np.abs(wide).sum() + self.l2 * np.square(wide).sum())


def _l1(l1: float = _DEFAULT) -> Regularizer:
    return Regularizer(l1=l1)


def _l2(l2: float = _DEFAULT) -> Regularizer:
    return Regularizer(l2=l2)


REGULARIZERS: dict[str, Callable[..., Regularizer]] = {"L1": _l1, "L2": _l2, "L1L2": Regularizer}
"""By the name of Keras' class."""


def regularizer_of(given: Any) -> Regularizer:
    """Return the regularizer that a name, a number (L2) or a configuration describes.

    Raises:
        UsageError: if it is unknown or its options are.
    """
    if isinstance(given, Regularizer):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return Regularizer(l2=given)
    if given == "l1_l2":
        return Regularizer(l1=_DEFAULT, l2=_DEFAULT)
    return read_config(given, REGULARIZERS, "regularizer")
