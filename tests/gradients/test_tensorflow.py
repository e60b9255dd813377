"""Rules against TensorFlow's gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gradients.judge import AUTOGRAD, FLOAT32, ROUNDINGS, Bench, Layout
from tests.gradients.sample import Array, Sample, ints, rounded

Function = Callable[[Any, Any], Any]

_RNG = np.random.default_rng(0)
_IMAGE = rounded(_RNG.normal(size=(2, 4, 4, 6)))
_MATRIX = rounded(_RNG.normal(size=(3, 5)))
_TIES = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
_LABELS = ints([0, 4, 2])


def _nhwc(function: Function) -> Function:
    """Apply a function of images whose channels are last to one whose channels are second."""
    return lambda tf, x: tf.transpose(function(tf, tf.transpose(x, [0, 2, 3, 1])), [0, 3, 1, 2])


def _cross_entropy(tf: Any, x: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(_LABELS, x))


_CASES: list[tuple[str, list[Array | None], dict[str, Any], Function]] = [
    ("Relu", [_TIES - 2.0], {}, lambda tf, x: tf.nn.relu(x)),
    (
        "Clip",
        [np.array([-1.0, 0.0, 3.0, 6.0, 7.0]), np.array(0.0), np.array(6.0)],
        {},
        lambda tf, x: tf.nn.relu6(x),
    ),
    ("LeakyRelu", [_TIES - 2.0], {"alpha": 0.25}, lambda tf, x: tf.nn.leaky_relu(x, 0.25)),
    ("Abs", [_TIES - 2.0], {}, lambda tf, x: tf.abs(x)),
    ("Gelu", [_MATRIX], {}, lambda tf, x: tf.nn.gelu(x, False)),
    ("Gelu", [_MATRIX], {"approximate": "tanh"}, lambda tf, x: tf.nn.gelu(x, True)),
    ("Swish", [_MATRIX], {}, lambda tf, x: tf.nn.silu(x)),
    ("Softplus", [_MATRIX], {}, lambda tf, x: tf.nn.softplus(x)),
    ("Softmax", [_MATRIX], {}, lambda tf, x: tf.nn.softmax(x)),
    ("LogSoftmax", [_MATRIX], {"axis": 0}, lambda tf, x: tf.nn.log_softmax(x, 0)),
    ("SoftmaxCrossEntropyLoss", [_MATRIX, _LABELS], {}, _cross_entropy),
    ("ReduceMax", [_TIES, ints([1])], {}, lambda tf, x: tf.reduce_max(x, 1, keepdims=True)),
    ("ReduceProd", [_TIES - 2.0, ints([1])], {}, lambda tf, x: tf.reduce_prod(x, 1, True)),
    ("CumSum", [_MATRIX, ints(1)], {"exclusive": 1}, lambda tf, x: tf.cumsum(x, 1, True)),
    ("Gather", [_MATRIX, _LABELS], {"axis": 1}, lambda tf, x: tf.gather(x, _LABELS, axis=1)),
    (
        "Pad",
        [_MATRIX, ints([1, 2, 0, 3])],
        {"mode": "reflect"},
        lambda tf, x: tf.pad(x, [[1, 0], [2, 3]], "REFLECT"),
    ),
    (
        "DepthToSpace",
        [_IMAGE],
        {"blocksize": 2},
        _nhwc(lambda tf, x: tf.nn.depth_to_space(x, 2)),
    ),
    (
        "SpaceToDepth",
        [_IMAGE],
        {"blocksize": 2},
        _nhwc(lambda tf, x: tf.nn.space_to_depth(x, 2)),
    ),
    (
        "Resize",
        [_IMAGE, None, None, ints([2, 4, 7, 3])],
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        _nhwc(lambda tf, x: tf.image.resize(x, [7, 3], "bilinear")),
    ),
    (
        "Resize",
        [_IMAGE, None, np.array([1, 1, 2, 3], np.float32)],
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        _nhwc(lambda tf, x: tf.repeat(tf.repeat(x, 2, 1), 3, 2)),
    ),
]


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "function"), _CASES, ids=lambda value: str(value)[:12]
)
def test_gradient_is_tensorflows(
    op_type: str, inputs: list[Array | None], attributes: dict[str, Any], function: Function
) -> None:
    import tensorflow as tf

    sample = Sample(
        op_type=op_type,
        inputs=[None if array is None else np.asarray(array) for array in inputs],
        attributes=attributes,
        oracle=None,
        frozen=(1, 2),
        reference=op_type in {"LeakyRelu", "Gelu", "Softplus"},
        single=op_type == "Resize",
        min_opset={"Gelu": 20, "Swish": 24}.get(op_type, 18),
    )
    bench = Bench(sample, Layout(opset=18))
    x = tf.constant(sample.inputs[0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(tf, x)
        loss = tf.reduce_sum(tf.cast(y, tf.float64) * bench.upstream["y0"])
    expected = tape.gradient(loss, x).numpy()
    # TensorFlow resizes in float32, and has float32 constants in gelu
    share = FLOAT32 if op_type in {"Resize", "Gelu"} else AUTOGRAD
    allowed = ROUNDINGS * share * bench.size
    assert np.abs(bench.gradients["x0"] - expected).max() <= allowed
