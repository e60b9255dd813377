"""What floating types, of numpy or ml_dtypes, can tell apart."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def epsilon(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number of a floating type."""
    return float(_limits(dtype).eps)


def smallest_normal(dtype: np.dtype[Any]) -> float:
    """Return the smallest number of a floating type that has its full precision."""
    return float(_limits(dtype).smallest_normal)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether a type is floating, of numpy or ml_dtypes."""
    try:
        _limits(dtype)
    except ValueError:
        return False
    return True


def _limits(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
