"""A model of keras.applications and TensorFlow's gradients of it, in float32 and in float64.

Run as a script: `keras_gradients.py NAME FOLDER` writes `model.keras` and `gradients.npz`, whose
arrays are the batch, what the output is multiplied by, and `float32:PATH` and `float64:PATH` for
each trainable weight.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

IMAGE_SIZE = 64
SAMPLES = 5
Array = npt.NDArray[Any]


def build(name: str, dtype: str) -> Any:
    """The network without its classifier, dropout off, so that training is no game of chance."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
    make = getattr(keras.applications, name)
    model = make(weights=None, include_top=False, pooling="avg", input_shape=shape)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def gradients(model: Any, images: Array, direction: Array) -> dict[str, Array]:
    """d sum(output * direction) / d weight, by the path of each weight."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) * direction)
    weights = model.trainable_weights
    found = tape.gradient(loss, weights)
    return {weight.path: value.numpy() for weight, value in zip(weights, found, strict=True)}


def main(name: str, folder: Path) -> None:
    keras.utils.set_random_seed(0)
    model = build(name, "float32")
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("/gamma", "/beta")):
            weight.assign(weight.numpy() + random.normal(0, 0.1, weight.shape))
    model.save(folder / "model.keras")
    twin = build(name, "float64")
    twin.set_weights(model.get_weights())
    images = random.normal(size=(SAMPLES, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    direction = random.normal(size=(SAMPLES, model.output_shape[-1])).astype(np.float32)
    arrays: dict[str, Any] = {"images": images, "direction": direction}
    for dtype, own in (("float32", model), ("float64", twin)):
        found = gradients(own, images.astype(dtype), direction.astype(dtype))
        arrays.update({f"{dtype}:{path}": value for path, value in found.items()})
    np.savez(folder / "gradients.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
