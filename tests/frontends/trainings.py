"""A small classifier of digits, trained by TensorFlow on replicas, in a process of its own.

`python -m tests.frontends.trainings LIBRARY REPLICAS FOLDER` writes `untrained.keras`,
`trained.keras` and the trained model's predictions of the test images: TensorFlow reuses collective
keys, so that a second strategy in one process fails or hangs.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.models import DIGITS
from tests.parity.child import run_module

Array = npt.NDArray[Any]
EPOCHS = 2


def train_on_replicas(library: str, replicas: int, folder: Path) -> Array:
    """Train under MirroredStrategy; return Keras' probabilities [360, 10] of the test images."""
    run_module(__name__, library, str(replicas), folder)
    probabilities: Array = np.load(folder / "predicted.npy")
    return probabilities


def digits(part: str) -> tuple[Array, Array]:
    """Return images [N, 8, 8, 1] and labels [N] of `train` or `test`."""
    with np.load(DIGITS.with_name(f"digits_{part}.npz")) as data:
        return data["image"], data["label"]


def classifier(
    library: Any, *, channels: int = 16, hidden: str = "hidden", activation: str = "ReLU"
) -> Any:
    """Make the untrained classifier, its normalization layers synchronized."""
    layers = library.layers
    activate = getattr(layers, activation)
    if library.__name__ == "tf_keras":
        normalization = layers.experimental.SyncBatchNormalization
    else:
        normalization = functools.partial(layers.BatchNormalization, synchronized=True)
    image = library.Input((8, 8, 1), name="image")
    x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name="stem_conv")(image)
    x = activate(name="stem_relu")(normalization(momentum=0.9, name="stem_bn")(x))
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False, name="depthwise_conv")(x)
    x = activate(name="depthwise_relu")(normalization(momentum=0.8, name="depthwise_bn")(x))
    x = layers.Dense(32, use_bias=False, name=hidden)(layers.Flatten(name="flat")(x))
    x = activate(name="hidden_relu")(normalization(name="hidden_bn", center=False)(x))
    x = layers.Dense(10, activation="softmax", name="digit")(x)
    return library.Model(image, x, name="classifier")


def _main(library_name: str, replicas: str, folder: str) -> None:
    import tensorflow as tf

    library = importlib.import_module(library_name)
    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration() for _ in range(int(replicas))]
    tf.config.set_logical_device_configuration(cpu, logical)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{at}" for at in range(int(replicas))])
    library.utils.set_random_seed(0)
    with strategy.scope():
        model = classifier(library)
        model.compile(library.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.save(Path(folder, "untrained.keras"))
    model.fit(*digits("train"), batch_size=48, epochs=EPOCHS, verbose=0)
    model.save(Path(folder, "trained.keras"))
    np.save(Path(folder, "predicted.npy"), model.predict(digits("test")[0], verbose=0))


if __name__ == "__main__":
    _main(*sys.argv[1:])
