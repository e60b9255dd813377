"""Elementwise operators, products and operators on rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.opsets.samples import (
    BOOLEANS,
    NEWEST,
    POSITIVE,
    SQUARE,
    Array,
    Sample,
    X,
    floats,
    sample,
)


def samples() -> Iterator[Sample]:
    """Yield the samples of this file."""
    for family in (_unary, _broadcasts, _slopes, _products, _rows):
        yield from family()


_UNARY: dict[str, tuple[Any, Array, dict[str, Any]]] = {
    "Abs": (np.abs, X, {}),
    "Ceil": (np.ceil, X, {}),
    "Clip": (lambda x: np.clip(x, -0.5, 0.25), X, {"min": -0.5, "max": 0.25}),
    "Elu": (lambda x: np.where(x > 0, x, 0.5 * np.expm1(x)), X, {"alpha": 0.5}),
    "Exp": (np.exp, X, {}),
    "Floor": (np.floor, X, {}),
    "HardSigmoid": (lambda x: np.clip(0.2 * x + 0.5, 0, 1), X, {}),
    "LeakyRelu": (lambda x: np.where(x > 0, x, 0.01 * x), X, {}),
    "Log": (np.log, POSITIVE, {}),
    "Neg": (np.negative, X, {}),
    "Reciprocal": (np.reciprocal, POSITIVE, {}),
    "Relu": (lambda x: np.maximum(x, 0), X, {}),
    "Selu": (lambda x: 1.0507 * np.where(x > 0, x, 1.6732 * np.expm1(x)), X, {}),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), X, {}),
    "Sqrt": (np.sqrt, POSITIVE, {}),
    "Tanh": (np.tanh, X, {}),
}
_LATER_UNARY = {
    7: ("Acos", "Asin", "Atan", "Cos", "Sin", "Tan"),
    9: ("Asinh", "Atanh", "Cosh", "Erf", "IsNaN", "Shrink", "Sign", "Sinh"),
    10: ("IsInf", "ThresholdedRelu"),
    11: ("Round",),
    12: ("Celu",),
    14: ("HardSwish",),
    18: ("Mish",),
    20: ("Gelu",),
}
_NUMPY: dict[str, Any] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
}


def _unary() -> Iterator[Sample]:
    for op_type, (function, x, attributes) in _UNARY.items():
        last = 10 if op_type == "Clip" else NEWEST
        yield sample(op_type, 6, last, x, expected=function, **attributes)
        yield sample(op_type, 1, 5, x, expected=function, consumed_inputs=[0], **attributes)
    for op_type in ("Identity", "Softplus", "Softsign"):
        yield sample(op_type, 1, NEWEST, X, expected=_LATER[op_type])
    for first, op_types in _LATER_UNARY.items():
        for op_type in op_types:
            yield sample(op_type, first, NEWEST, np.tanh(X) * 0.9)


_LATER: dict[str, Any] = {
    "Identity": lambda x: x,
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
}


def _broadcasts() -> Iterator[Sample]:
    for op_type, function in _NUMPY.items():
        a: Array = BOOLEANS if op_type in ("And", "Or", "Xor") else np.abs(SQUARE) + 0.5
        if op_type in ("Equal", "Greater", "Less"):
            a = np.round(a).astype(np.int32) if op_type == "Equal" else a
        for shape, axis in (
            (a.shape[1:2], 1),
            (a.shape[:1], 0),
            (a.shape[1:3], 1),
            (a.shape[3:], 3),
            (a.shape[3:], -1),
            (a.shape[2:], None),
            ((1,), None),
            (a.shape[1:3], -3),
        ):
            b = np.resize(a[::-1], shape)
            at = a.ndim - b.ndim if axis in (None, -1) else axis % a.ndim
            aligned = b.reshape(b.shape + (1,) * (a.ndim - at - b.ndim))
            attributes: dict[str, Any] = {"broadcast": 1}
            if axis is not None:
                attributes["axis"] = axis

            def expected(
                x: Array, y: Array, f: Any = function, shape: Any = aligned.shape
            ) -> Array:
                return np.asarray(f(x, y.reshape(shape)))

            yield sample(op_type, 1, 6, a, b, fed=2, expected=expected, **attributes)
            yield sample(op_type, 1, 6, a, b, fed=1, expected=expected, **attributes)
            yield sample(op_type, 7, NEWEST, a, aligned, fed=2)
        yield sample(op_type, 1, 6, a, a[::-1].copy(), fed=2, expected=function)
    for op_type in ("Sum", "Max", "Min", "Mean"):
        yield sample(op_type, 6, 7, X, POSITIVE, X * 2, fed=3, expected=_MANY[op_type])
        yield sample(op_type, 8, NEWEST, X, floats(3, 1, 1), fed=2)


_MANY: dict[str, Any] = {
    "Sum": lambda *xs: sum(xs),
    "Max": lambda *xs: np.maximum.reduce(xs),
    "Min": lambda *xs: np.minimum.reduce(xs),
    "Mean": lambda *xs: sum(xs) / len(xs),
}


def _slopes() -> Iterator[Sample]:
    def expected(x: Array, slope: Array) -> Array:
        if slope.ndim == 1:
            slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
        return np.asarray(np.where(x < 0, slope * x, x))

    for x in (SQUARE, X, floats(2, 3, 3), floats(4, 3), floats(2, 3, 2, 2, 3)):
        for fed in (1, 2):
            yield sample("PRelu", 6, 6, x, floats(3), fed=fed, expected=expected)
            yield sample(
                "PRelu", 1, 5, x, floats(3), fed=fed, expected=expected, consumed_inputs=[0, 0]
            )
        yield sample("PRelu", 1, 6, x, floats(1), expected=expected)
        yield sample("PRelu", 7, NEWEST, x, floats(*(3,) + (1,) * (x.ndim - 2)))
    yield sample("PRelu", 7, NEWEST, SQUARE, floats(3))
    yield sample("PRelu", 7, NEWEST, X, floats(4, 1))


def _products() -> Iterator[Sample]:
    a, b = floats(4, 3), floats(3, 5)
    for c, attributes in (
        (floats(5), {"broadcast": 1}),
        (floats(4, 5), {}),
        (floats(1), {"broadcast": 1}),
    ):

        def expected(x: Array, y: Array, z: Array) -> Array:
            return np.asarray(0.5 * x @ y + 2 * z)

        yield sample("Gemm", 1, 6, a, b, c, expected=expected, alpha=0.5, beta=2.0, **attributes)
        yield sample("Gemm", 7, NEWEST, a, b, c, alpha=0.5, beta=2.0)
    yield sample("Gemm", 7, NEWEST, a, b.T.copy(), floats(4, 1), transB=1)
    yield sample("Gemm", 11, NEWEST, a, b)
    yield sample("MatMul", 1, NEWEST, a, b, fed=2, expected=np.matmul)
    yield sample("Einsum", 12, NEWEST, a, b, fed=2, equation="ij,jk->ik")


def _rows() -> Iterator[Sample]:
    for op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        for x in (X, SQUARE, floats(2, 3, 4), floats(3, 4), floats(2, 6, 1, 1)):
            yield sample(op_type, 1, 12, x, expected=_row_wise(op_type, 1))
            for axis in range(x.ndim):
                yield sample(op_type, 1, 12, x, axis=axis, expected=_row_wise(op_type, axis))
            for axis in range(-x.ndim, 0):
                yield sample(op_type, 11, 12, x, axis=axis)
        for given in ({}, *({"axis": axis} for axis in (-1, 0, 1, 2))):
            yield sample(op_type, 13, NEWEST, X, **given)


def _row_wise(op_type: str, axis: int) -> Any:
    def function(x: Array) -> Array:
        rows = x.reshape(int(np.prod(x.shape[:axis])), -1).astype(np.float64)
        exp = np.exp(rows - rows.max(axis=1, keepdims=True))
        found = exp / exp.sum(axis=1, keepdims=True)
        if op_type == "LogSoftmax":
            found = np.log(found)
        if op_type == "Hardmax":
            found = np.eye(rows.shape[1])[rows.argmax(axis=1)]
        return np.asarray(found.reshape(x.shape))

    return function
