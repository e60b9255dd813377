"""Operators in float64 that ONNX's reference implementation computes in float32, or not at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.gradients.sample import Array

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Erf(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (_erf(x),)


class Softsign(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.asarray(x / (1 + np.abs(x))),)


class HardSwish(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.asarray(x * np.clip(x / 6 + 0.5, 0, 1)),)


class Gelu(OpRun):
    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return (np.asarray(0.5 * x * (1 + np.tanh(inner))),)
        return (np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2)))),)


class Mean(OpRun):
    op_domain = ""

    def _run(self, *operands: Array) -> tuple[Array]:
        return (np.asarray(functools.reduce(np.add, operands) / len(operands)),)


class GlobalMaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def evaluator(model: onnx.ModelProto) -> Callable[[Any, Any], list[Any]]:
    """Return what runs a model in float64."""
    replaced = [Erf, Softsign, HardSwish, Gelu, GlobalMaxPool, Mean]
    run = ReferenceEvaluator(model, new_ops=replaced).run
    return lambda names, feeds: [np.asarray(result) for result in run(names, feeds)]
