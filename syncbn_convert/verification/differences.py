"""Comparison of values: one output in one run, and one output over all runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.reports import ERROR_BOUNDS, OutputDifference
from syncbn_convert.verification.tolerance import Array, scale_of

_LONGEST_TEXT = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one output of one run is from the reference.

    Attributes:
        absolute: Largest |candidate - reference|.
        scale: What errors are relative to.
        allowed: Largest `absolute` that passes.
        detail: What differs beside the size of numbers; empty if nothing.
        histogram: Elements by relative error, as `OutputDifference` has them; empty if unknown.
    """

    absolute: float
    scale: float
    allowed: float
    detail: str = ""
    histogram: tuple[int, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the difference passes."""
        return not self.detail and self.absolute <= self.allowed

    @property
    def relative(self) -> float:
        """Largest error relative to the scale."""
        return self.absolute / self.scale

    @property
    def tolerance(self) -> float:
        """Largest relative error that passes."""
        return self.allowed / self.scale

    def order(self) -> tuple[float, float]:
        """Return a key by which the difference nearest to not passing comes last."""
        return (self.excess, -self.tolerance)

    @property
    def excess(self) -> float:
        """Share of the tolerance that is used up; above 1 the difference does not pass."""
        if self.detail:
            return math.inf
        if self.allowed == 0.0:
            return math.inf if self.absolute else 0.0
        return self.absolute / self.allowed


def compare_values(reference: Array, candidate: Array, allowed: float) -> Difference:
    """Return the difference between two values of one output.

    Args:
        reference: Value in the reference.
        candidate: Value in the candidate.
        allowed: Largest |candidate - reference| that passes.
    """
    scale = scale_of(reference)
    detail = _type_difference(reference, candidate)
    if detail:
        return Difference(absolute=math.inf, scale=scale, allowed=allowed, detail=detail)
    if not is_floating(reference.dtype) and reference.dtype.kind not in "iub":
        detail = (
            "" if np.array_equal(reference, candidate) else _text_difference(reference, candidate)
        )
        return Difference(absolute=0.0, scale=scale, allowed=allowed, detail=detail)
    if is_floating(reference.dtype):
        detail = _non_finite_difference(reference.astype(np.float64), candidate.astype(np.float64))
    absolute = largest_change(reference, candidate)
    return Difference(
        absolute=absolute,
        scale=scale,
        allowed=allowed,
        detail=detail,
        histogram=_histogram(reference, candidate, scale),
    )


def _text_difference(reference: Array, candidate: Array) -> str:
    if reference.ndim:
        return "values differ"
    return f"{_short(candidate)}, not {_short(reference)}"


def _short(value: Array) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _histogram(reference: Array, candidate: Array, scale: float) -> tuple[int, ...]:
    with np.errstate(all="ignore"):
        errors = np.abs(candidate.astype(np.float64) - reference.astype(np.float64)) / scale
    errors = errors[np.isfinite(errors)]
    places = np.digitize(errors[errors > 0], ERROR_BOUNDS)
    counts = np.bincount(places, minlength=len(ERROR_BOUNDS) + 1)
    return (int((errors == 0).sum()), *map(int, counts))


def largest_change(reference: Array, other: Array) -> float:
    """Return the largest |other - reference| among elements that are finite in both."""
    if reference.dtype.kind in "iub":
        changes = np.abs(reference.astype(object) - other.astype(object))
        return float(changes.max()) if changes.size else 0.0
    first, second = reference.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    changes = np.abs(np.subtract(second, first, where=finite, out=np.zeros_like(first)))
    return float(np.max(changes, initial=0.0))


def summarize(name: str, differences: Sequence[Difference]) -> OutputDifference:
    """Return what the differences of one output over all runs amount to."""
    nearest = max(differences, key=Difference.order)
    return OutputDifference(
        name=name,
        equal=all(difference.equal for difference in differences),
        max_absolute_error=max(difference.absolute for difference in differences),
        max_relative_error=max(difference.relative for difference in differences),
        tolerance=nearest.tolerance,
        detail=next((d.detail for d in differences if d.detail), ""),
        histogram=_sums([difference.histogram for difference in differences]),
    )


def _sums(histograms: Sequence[tuple[int, ...]]) -> list[int]:
    known = [histogram for histogram in histograms if histogram]
    return [sum(counts) for counts in zip(*known, strict=True)]


def _type_difference(reference: Array, candidate: Array) -> str:
    if reference.dtype.kind == candidate.dtype.kind == "U":
        return ""
    if reference.dtype != candidate.dtype:
        return f"element type {candidate.dtype}, not {reference.dtype}"
    if reference.shape != candidate.shape:
        return f"shape {list(candidate.shape)}, not {list(reference.shape)}"
    return ""


def _non_finite_difference(
    reference: np.ndarray[Any, np.dtype[np.float64]],
    candidate: np.ndarray[Any, np.dtype[np.float64]],
) -> str:
    checks = (("NaN", np.isnan), ("infinity", np.isposinf), ("-infinity", np.isneginf))
    for name, test in checks:
        places = np.argwhere(test(reference) != test(candidate))
        if len(places):
            index = [int(i) for i in places[0]]
            side = "the reference" if test(reference[tuple(index)]) else "the candidate"
            return f"{name} only in {side}, at {index}"
    return ""
