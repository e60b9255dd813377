"""Training the digits in Keras with synchronized normalization, in a process of its own.

`python -m tests.parity.keras_training RUN.pickle RESULTS.npz`: MirroredStrategy over logical CPU
devices, one number of replicas a process.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.parity.child import run_module
from tests.parity.tensorflow_oracle import _strategy

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What to train, and how.

    Attributes:
        replicas: Number of replicas.
        optimizer: Name of the class in keras.optimizers.
        options: Its arguments.
        batch_size: Samples of a global batch.
        weights: First values by name, as the ONNX model has them.
        data: Images and labels, in the order of the steps.
    """

    replicas: int
    optimizer: str
    options: dict[str, Any]
    batch_size: int
    weights: dict[str, Array]
    data: dict[str, Array]


def train(run: Run, folder: Path) -> dict[str, Array]:
    """Return `loss` of each step, and every weight under its name, as the ONNX model has it."""
    given, results = folder / "run.pickle", folder / "trained.npz"
    given.write_bytes(pickle.dumps(run))
    run_module(__name__, given, results)
    with np.load(results) as arrays:
        return dict(arrays)


def _model() -> Any:
    """The layers of digits_cnn up to its logits, channels last."""
    import keras

    layers = keras.layers

    def normalize(name: str) -> Any:
        return layers.BatchNormalization(momentum=0.9, synchronized=True, name=name)

    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem_conv")(image)
    shortcut = layers.ReLU()(normalize("stem_bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise_conv")(shortcut)
    x = layers.ReLU()(normalize("depthwise_bn")(x))
    x = layers.Conv2D(32, 1, use_bias=False, name="residual_conv")(x)
    x = layers.ReLU()(layers.Add()([shortcut, normalize("residual_bn")(x)]))
    x = layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False, name="down_conv")(x)
    x = layers.ReLU()(normalize("down_bn")(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(64, use_bias=False, name="hidden")(x)
    x = layers.ReLU()(normalize("hidden_bn")(x))
    return keras.Model(image, layers.Dense(10, name="logits")(x))


def _to_keras(name: str, value: Array) -> Array:
    if value.ndim == 2 or not name.endswith("kernel"):
        return value
    return value.transpose(2, 3, 0, 1) if "depthwise" in name else value.transpose(2, 3, 1, 0)


def _to_onnx(name: str, value: Array) -> Array:
    if value.ndim == 2 or not name.endswith("kernel"):
        return value
    return value.transpose(2, 3, 0, 1) if "depthwise" in name else value.transpose(3, 2, 0, 1)


def _main(given: str, results: str) -> None:
    import keras
    import tensorflow as tf

    run: Run = pickle.loads(Path(given).read_bytes())
    strategy = _strategy(run.replicas)
    with strategy.scope():
        model = _model()
        optimizer = getattr(keras.optimizers, run.optimizer)(**run.options)
        optimizer.build(model.trainable_variables)
    for variable in model.variables:
        if variable.path in run.weights:
            variable.assign(_to_keras(variable.path, run.weights[variable.path]))

    @tf.function  # type: ignore[untyped-decorator]
    def step(image: Any, label: Any) -> Any:
        def replica(image: Any, label: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(image, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
                loss = tf.reduce_sum(losses) / run.batch_size
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        losses = strategy.run(replica, args=(image, label))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    share = run.batch_size // run.replicas
    found = []
    for start in range(0, len(run.data["label"]), run.batch_size):
        pieces = [
            strategy.experimental_distribute_values_from_function(
                lambda context, name=name, start=start: tf.constant(
                    run.data[name][start + share * context.replica_id_in_sync_group :][:share]
                )
            )
            for name in ("image", "label")
        ]
        found.append(float(step(*pieces)))
    arrays: dict[str, Any] = {
        v.path: _to_onnx(v.path, v.numpy()) for v in model.variables if v.path in run.weights
    }
    np.savez(results, loss=np.array(found), **arrays)


if __name__ == "__main__":
    _main(*sys.argv[1:])
