"""Where a function has no derivative, ours is the one that TensorFlow or torch take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gradients.judge import Bench, Layout
from tests.gradients.sample import Array, Sample, ints

_INF = float("inf")
Function = Callable[..., Any]


def at_kink(op_type: str, inputs: list[Array | None], oracle: Function, **attributes: Any) -> None:
    """Compare with torch's gradient at points where differences say nothing."""
    sample = Sample(
        op_type=op_type,
        inputs=inputs,
        oracle=oracle,
        attributes=attributes,
        reference=op_type in {"LeakyRelu", "PRelu", "Elu", "Selu", "HardSigmoid", "HardSwish"},
    )
    bench = Bench(sample, Layout(opset=18))
    bench.check_autograd()
    bench.check_float32()


@pytest.mark.parametrize(
    ("op_type", "points", "oracle"),
    [
        ("Abs", [0.0], torch.abs),
        ("Relu", [0.0], torch.relu),
        ("LeakyRelu", [0.0], lambda x: F.leaky_relu(x, 0.01)),
        ("Elu", [0.0], F.elu),
        ("HardSwish", [-3.0, 3.0], F.hardswish),
        ("Sign", [0.0], torch.sign),
    ],
)
def test_unary_operators_at_their_kinks(
    op_type: str, points: list[float], oracle: Function
) -> None:
    at_kink(op_type, [np.array(points)], oracle)


def test_parametric_relu_at_zero() -> None:
    at_kink("PRelu", [np.zeros(2), np.array([0.25])], lambda x, slope: F.prelu(x[None], slope)[0])


def test_clip_is_flat_at_its_bounds_as_relu6() -> None:
    x = np.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    sample = Sample(
        op_type="Clip",
        inputs=[x, np.array(0.0), np.array(6.0)],
        oracle=lambda x: F.relu6(x),
        frozen=(1, 2),
    )
    Bench(sample, Layout(opset=18)).check_autograd()


def test_hard_sigmoid_is_flat_at_its_kinks() -> None:
    at_kink("HardSigmoid", [np.array([-3.0, 3.0])], F.hardsigmoid, alpha=1 / 6, beta=0.5)


@pytest.mark.parametrize(("op_type", "oracle"), [("Max", torch.maximum), ("Min", torch.minimum)])
def test_inputs_that_tie_share(op_type: str, oracle: Function) -> None:
    at_kink(op_type, [np.array([1.0, 2.0]), np.array([1.0, 3.0])], oracle)


@pytest.mark.parametrize(
    ("op_type", "oracle"),
    [("ReduceMax", lambda x: x.amax(1, True)), ("ReduceMin", lambda x: x.amin(1, True))],
)
def test_elements_that_tie_share(op_type: str, oracle: Function) -> None:
    at_kink(op_type, [np.array([[1.0, 1.0, 1.0], [2.0, 3.0, 2.0]]), ints([1])], oracle)


def test_norm_of_zeros_has_gradient_zero() -> None:
    at_kink("ReduceL2", [np.zeros((2, 3)), ints([1])], lambda x: x.norm(dim=1, keepdim=True))


def test_power_zero_has_gradient_zero() -> None:
    at_kink("Pow", [np.zeros(2), np.zeros(2)], lambda a, b: torch.ones_like(a) + 0 * (a + b))


def test_large_values_do_not_overflow() -> None:
    x = np.array([-100.0, -30.0, 30.0, 88.0, 100.0])
    at_kink("Softplus", [np.minimum(x, 15.0)], F.softplus)
    at_kink("Sigmoid", [x], torch.sigmoid)
    at_kink("Tanh", [x], torch.tanh)
    at_kink("LogSoftmax", [x], lambda x: torch.log_softmax(x, -1))
