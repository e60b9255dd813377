"""Samples of arithmetic with broadcasting, of functions of one variable and of activations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import TensorProto

from tests.gradients.cases.registry import case
from tests.gradients.sample import Draw, Sample, rounded

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
}
_MANY: dict[str, Callable[[Any, Any], Any]] = {
    "Sum": torch.add,
    "Mean": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}


@case("Add", "Sub", "Mul", "Div")
def binary(op_type: str, draw: Draw) -> Sample:
    left, right = draw.broadcast(2)
    divisor = rounded(draw.values(right, 0.6, 2.0) * draw.one_of(-1.0, 1.0))
    inputs = [draw.values(left), divisor if op_type == "Div" else draw.values(right)]
    return Sample(op_type=op_type, inputs=inputs, oracle=_BINARY[op_type])


@case("Sum", "Mean", "Max", "Min")
def variadic(op_type: str, draw: Draw) -> Sample:
    shapes = draw.broadcast(draw.integer(1, 3))
    # values apart from one another: an offset for each input
    inputs = [rounded(draw.distinct(shape) + 0.008 * index) for index, shape in enumerate(shapes)]

    def oracle(*operands: Any) -> Any:
        result = functools.reduce(_MANY[op_type], operands)
        return result / len(operands) if op_type == "Mean" else result

    return Sample(op_type=op_type, inputs=inputs, oracle=oracle, reference=op_type == "Mean")


@case("Pow")
def power(op_type: str, draw: Draw) -> Sample:
    left, right = draw.broadcast(2)
    inputs = [draw.values(left, 0.7, 2.0), draw.values(right)]
    return Sample(op_type=op_type, inputs=inputs, oracle=torch.pow)


@case("Pow")
def power_of_constant(op_type: str, draw: Draw) -> Sample:
    exponent = np.asarray(draw.one_of(0, 1, 2, 3), dtype=np.int64)
    x = draw.values(draw.shape(0), kinks=[0.0])
    return Sample(
        op_type=op_type, inputs=[x, exponent], oracle=lambda x: torch.pow(x, int(exponent))
    )


_UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Identity": torch.clone,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Abs": torch.abs,
    "Relu": torch.relu,
    "Sqrt": torch.sqrt,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
}
_RANGES = {
    "Sqrt": (0.5, 3.0),
    "Log": (0.5, 3.0),
    "Reciprocal": (0.5, 3.0),
    "Tan": (-1.0, 1.0),
    "Asin": (-0.8, 0.8),
    "Acos": (-0.8, 0.8),
    "Atanh": (-0.8, 0.8),
    "Acosh": (1.3, 3.0),
    "HardSwish": (-5.0, 5.0),
    "Mish": (-20.0, 20.0),
    "Softplus": (-15.0, 15.0),
    "Sigmoid": (-10.0, 10.0),
}
_KINKS = {"Abs": [0.0], "Relu": [0.0], "HardSwish": [-3.0, 3.0]}
_FLOAT64_KERNELS = {*list(_UNARY)[:9], "Sqrt", "Log", "Reciprocal"}


@case(*_UNARY)
def unary(op_type: str, draw: Draw) -> Sample:
    low, high = _RANGES.get(op_type, (-3.0, 3.0))
    return Sample(
        op_type=op_type,
        inputs=[draw.values(draw.shape(0), low, high, kinks=_KINKS.get(op_type, ()))],
        oracle=_UNARY[op_type],
        reference=op_type not in _FLOAT64_KERNELS,
    )


_PARAMETRIC: dict[str, Callable[[Any, float], Any]] = {
    "LeakyRelu": F.leaky_relu,
    "Elu": F.elu,
    "Celu": F.celu,
    "ThresholdedRelu": lambda x, alpha: torch.where(x > alpha, x, 0.0),
    "Swish": lambda x, alpha: x * torch.sigmoid(alpha * x),
}


@case(*_PARAMETRIC)
def with_alpha(op_type: str, draw: Draw) -> Sample:
    alpha = draw.number(0.125, 2.0)
    kink = alpha if op_type == "ThresholdedRelu" else 0.0
    return Sample(
        op_type=op_type,
        inputs=[draw.values(draw.shape(0), -3.0, 3.0, kinks=[kink])],
        attributes={"alpha": alpha},
        oracle=lambda x: _PARAMETRIC[op_type](x, alpha),
        reference=True,
        min_opset=24 if op_type == "Swish" else 18,
        max_opset=24 if op_type == "Swish" else 26,
    )


@case("Selu")
def selu(op_type: str, draw: Draw) -> Sample:
    given = draw.flag()
    alpha, gamma = 1.67326319217681884765625, 1.05070102214813232421875
    if given:
        alpha, gamma = draw.number(0.5, 2.0), draw.number(0.5, 2.0)
    return Sample(
        op_type=op_type,
        inputs=[draw.values(draw.shape(0), kinks=[0.0])],
        attributes={"alpha": alpha, "gamma": gamma} if given else {},
        oracle=lambda x: gamma * F.elu(x, alpha),
        reference=True,
    )


@case("HardSigmoid")
def hard_sigmoid(op_type: str, draw: Draw) -> Sample:
    alpha, beta = draw.number(0.125, 1.0), draw.number(0.25, 0.75)
    return Sample(
        op_type=op_type,
        inputs=[draw.values(draw.shape(0), -5.0, 5.0, kinks=[-beta / alpha, (1 - beta) / alpha])],
        attributes={"alpha": alpha, "beta": beta},
        oracle=lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0),
        reference=True,
    )


@case("PRelu")
def parametric_relu(op_type: str, draw: Draw) -> Sample:
    shape = draw.shape(1, 4)
    kept = draw.integer(0, len(shape))
    slope = tuple(1 if draw.flag() else size for size in shape[len(shape) - kept :])
    return Sample(
        op_type=op_type,
        inputs=[draw.values(shape, kinks=[0.0]), draw.values(slope)],
        oracle=lambda x, slope: torch.where(x > 0, x, x * slope),
        reference=True,
    )


@case("Gelu")
def gelu(op_type: str, draw: Draw) -> Sample:
    approximate = draw.one_of("none", "tanh")
    x = draw.values(draw.shape(0), -4.0, 4.0)
    if x.size and draw.flag():
        x.flat[0] = 0.0
    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={"approximate": approximate},
        oracle=lambda x: F.gelu(x, approximate=approximate),
        reference=True,
        min_opset=20,
    )


@case("Cast")
def cast(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(0))
    double = int(TensorProto.DOUBLE)
    return Sample(op_type=op_type, inputs=[x], attributes={"to": double}, oracle=torch.clone)


@case("CastLike")
def cast_like(op_type: str, draw: Draw) -> Sample:
    inputs = [draw.values(draw.shape(0)), draw.values([2])]
    return Sample(op_type=op_type, inputs=inputs, oracle=lambda x, _: x.clone())
