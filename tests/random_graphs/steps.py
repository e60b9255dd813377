"""A step takes a value of a scope and returns another; the operators of random graphs are such."""

from __future__ import annotations

import math
from collections.abc import Callable

from tests.random_graphs.sketch import Scope, Shape, Value

Step = Callable[[Scope, Value], Value]
_STEPS: dict[Step, int] = {}
_MOST_ELEMENTS = 600


def step(weight: int) -> Callable[[Step], Step]:
    """Register a step that is taken so often."""

    def register(function: Step) -> Step:
        _STEPS[function] = weight
        return function

    return register


def some(scope: Scope, value: Value) -> Value:
    """Add one step; a step that does not fit leaves the value as it is."""
    choices = [function for function, weight in _STEPS.items() for _ in range(weight)]
    result = scope.draw.one_of(*choices)(scope, value)
    return result if math.prod(result.shape) <= _MOST_ELEMENTS else value


def spatial(value: Value) -> Shape | None:
    """Return the spatial sizes of what can be convolved."""
    return value.shape[2:] if 3 <= len(value.shape) <= 5 else None
