"""What float32 data far from zero does to the batch variance, layer by layer of several kinds.

One layer of 64 channels sees 2 x 64 samples of 16 positions on two replicas; the mean of each
channel is 1, 100, 1,000 or 10,000 standard deviations away from zero. With momentum 0 the moving
variance is the batch variance. Printed is its largest error relative to a float64 computation on
the same float32 data:

-   the training form on two replicas, as threads;
-   TensorFlow's layers under MirroredStrategy over two logical CPU devices;
-   ONNX Runtime's training-mode kernel and torch's BatchNorm1d, on all data at once.

Run `python benchmarks/numerics.py`; it exits 1 if the training form is off by more than 1e-3 at
10,000.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import syncbn_convert

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

REPLICAS = 2
SAMPLES = 64
POSITIONS = 16
CHANNELS = 64
RATIOS = (1.0, 1e2, 1e3, 1e4)
BOUND = 1e-3

Array = npt.NDArray[Any]
Variance = Callable[[Sequence[Array]], Array]


def model() -> onnx.ModelProto:
    """Return one BatchNormalization with momentum 0 and neutral parameters."""
    values = {"s": 1.0, "b": 0.0, "m": 0.0, "v": 1.0}
    shape: list[str | int | None] = ["n", CHANNELS, POSITIONS]
    node = helper.make_node("BatchNormalization", ["x", *values], ["y"], name="norm", momentum=0.0)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.full(CHANNELS, value, np.float32), name)
            for name, value in values.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def ours(pieces: Sequence[Array]) -> Array:
    """Return the variance of the training form on one replica for each piece."""
    form = syncbn_convert.convert(model(), verify=False)
    return syncbn_convert.run_replicas(form, [{"x": piece} for piece in pieces])[0]["v.next"]


def kernel(pieces: Sequence[Array]) -> Array:
    """Return the variance of ONNX Runtime's training-mode kernel on all data."""
    training = model()
    training.graph.node[0].attribute.append(helper.make_attribute("training_mode", 1))
    training.graph.node[0].output.extend(["mean", "var"])
    training.graph.output.append(
        helper.make_tensor_value_info("var", onnx.TensorProto.FLOAT, [CHANNELS])
    )
    session = onnxruntime.InferenceSession(
        training.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (var,) = session.run(["var"], {"x": np.concatenate(pieces)})
    return np.asarray(var)


def torch_layer(pieces: Sequence[Array]) -> Array:
    """Return the variance of torch's layer on all data, as that of N."""
    torch = importlib.import_module("torch")
    layer = torch.nn.BatchNorm1d(CHANNELS, momentum=1.0)
    union = np.concatenate(pieces)
    layer(torch.tensor(union))
    count = union.size / CHANNELS
    return np.asarray(layer.running_var.numpy() * (count - 1) / count)


def tensorflow_layer(strategy: Any, make: Callable[..., Any], pieces: Sequence[Array]) -> Array:
    """Return the variance of a synchronized layer under MirroredStrategy."""
    tf: Any = importlib.import_module("tensorflow")
    with strategy.scope():
        layer = make(axis=1, momentum=0.0)
        layer.build((None, CHANNELS, POSITIONS))
    x = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(pieces[context.replica_id_in_sync_group])
    )
    strategy.run(functools.partial(layer, training=True), args=(x,))
    return np.asarray(layer.moving_variance.numpy())


def contenders() -> dict[str, Variance]:
    """Return what computes a variance, by name."""
    tf: Any = importlib.import_module("tensorflow")
    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration() for _ in range(REPLICAS)]
    tf.config.set_logical_device_configuration(cpu, logical)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{rank}" for rank in range(REPLICAS)])
    keras = importlib.import_module("keras.layers")
    old = importlib.import_module("tf_keras.layers")
    synchronized = functools.partial(keras.BatchNormalization, synchronized=True)
    return {
        "training form, 2 replicas": ours,
        "tf_keras SyncBatchNormalization": functools.partial(
            tensorflow_layer, strategy, old.experimental.SyncBatchNormalization
        ),
        "keras BatchNormalization(synchronized)": functools.partial(
            tensorflow_layer, strategy, synchronized
        ),
        "ONNX Runtime training-mode kernel": kernel,
        "torch BatchNorm1d": torch_layer,
    }


def data(ratio: float) -> list[Array]:
    """Return one float32 piece for each replica."""
    random = np.random.default_rng(0)
    deviation = random.uniform(0.5, 2.0, (CHANNELS, 1))
    shape = (SAMPLES, CHANNELS, POSITIONS)
    return [
        (random.standard_normal(shape) * deviation + ratio * deviation).astype(np.float32)
        for _ in range(REPLICAS)
    ]


def error(variance: Variance, pieces: Sequence[Array]) -> float:
    """Return the largest relative error of a variance."""
    exact = np.concatenate(pieces).astype(np.float64).var(axis=(0, 2))
    return float(np.max(np.abs(variance(pieces).astype(np.float64) - exact) / exact))


def main() -> int:
    """Print the table; return the exit code."""
    print("largest relative error of the batch variance, by |mean| / standard deviation")
    print(f"{'':40s}" + "".join(f"{ratio:>10g}" for ratio in RATIOS))
    found: dict[str, list[float]] = {}
    for name, variance in contenders().items():
        found[name] = [error(variance, data(ratio)) for ratio in RATIOS]
        print(f"{name:40s}" + "".join(f"{value:>10.1e}" for value in found[name]), flush=True)
    return int(found["training form, 2 replicas"][-1] > BOUND)


if __name__ == "__main__":
    sys.exit(main())
