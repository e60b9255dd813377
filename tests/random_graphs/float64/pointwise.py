"""Element by element."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from onnx import helper

from tests.random_graphs.float64.values import (
    OPERATORS,
    ROUNDINGS,
    Array,
    Known,
    Operator,
    Site,
    given,
    operator,
)


def _sum_of(sign: int) -> Operator:
    def add(site: Site, a: Known, b: Known) -> Known:
        del site
        if not a.is_float:
            return given(a.value + sign * b.value)
        error = max(a.error, b.error) + ROUNDINGS * a.unit
        return Known(a.value + sign * b.value, a.dtype, a.size + b.size, error)

    return add


OPERATORS["Add"] = _sum_of(1)
OPERATORS["Sub"] = _sum_of(-1)


@operator("Mul")
def _mul(site: Site, a: Known, b: Known) -> Known:
    del site
    if not a.is_float:
        return given(a.value * b.value)
    error = a.error + b.error + ROUNDINGS * a.unit
    return Known(a.value * b.value, a.dtype, a.size * b.size, error)


@operator("Div")
def _div(site: Site, a: Known, b: Known) -> Known:
    """By constants alone, which are far from zero."""
    del site
    if not a.is_float:
        return given(np.trunc(a.value / b.value).astype(a.dtype))
    error = a.error + 2 * b.error + ROUNDINGS * a.unit
    return Known(a.value / b.value, a.dtype, a.size / np.abs(b.value), error)


@operator("Neg")
def _neg(site: Site, x: Known) -> Known:
    del site
    return dataclasses.replace(x, value=-x.value)


def _steep_at_most_one(function: Callable[[Array], Array]) -> Operator:
    def run(site: Site, x: Known) -> Known:
        del site
        y = function(x.value)
        return Known(y, x.dtype, np.maximum(x.size, np.abs(y)), x.error + ROUNDINGS * x.unit)

    return run


OPERATORS["Relu"] = _steep_at_most_one(lambda x: np.maximum(x, 0))
OPERATORS["Tanh"] = _steep_at_most_one(np.tanh)
OPERATORS["Sigmoid"] = _steep_at_most_one(lambda x: 1 / (1 + np.exp(-x)))
OPERATORS["Abs"] = _steep_at_most_one(np.abs)


@operator("LeakyRelu")
def _leaky(site: Site, x: Known) -> Known:
    slope = float(np.float32(site.attributes.get("alpha", 0.01)))
    return _steep_at_most_one(lambda v: np.where(v < 0, slope * v, v))(site, x)  # type: ignore[return-value]


@operator("Clip")
def _clip(site: Site, x: Known, low: Known | None = None, high: Known | None = None) -> Known:
    least, most = (
        float(np.float32(site.attributes.get(name, default))) if known is None
        else float(known.value)
        for name, default, known in (("min", -math.inf, low), ("max", math.inf, high))
    )  # fmt: skip
    return _steep_at_most_one(lambda v: np.clip(v, least, most))(site, x)  # type: ignore[return-value]


@operator("Cast")
def _cast(site: Site, x: Known) -> Known:
    dtype = helper.tensor_dtype_to_np_dtype(site.attributes["to"])
    if not np.issubdtype(dtype, np.floating) or not x.is_float:
        return given(x.value.astype(dtype))
    if not x.error:
        return given(x.value.astype(x.dtype).astype(dtype))
    found = dataclasses.replace(x, dtype=dtype)
    return dataclasses.replace(found, error=x.error + found.unit + x.unit)
