"""Export a Keras model by the ordinary road, normalization taken apart; print its layers' number.

Run as `python -m tests.passes.export_decomposed NAME SIZE MODE FILE` with MODE `training` or
`inference`; NAME is one of keras.applications, `MobileNetV2Small` or `ConvReluNorm`.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import onnx
import tensorflow as tf
import tf2onnx

from tests.fusion.export_application import build, randomize


def conv_relu_norm(size: int) -> tuple[Any, list[Any]]:
    """Return a model whose layers cannot be folded: a Relu stands between each and its Conv."""
    keras.utils.set_random_seed(0)
    x = y = keras.Input((size, size, 3))
    for filters in (8, 16, 16):
        y = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(y)
        y = keras.layers.BatchNormalization()(y)
    y = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y)
    return model, randomize(model)


def main(name: str, size: int, mode: str, path: str) -> None:
    if name == "ConvReluNorm":
        model, layers = conv_relu_norm(size)
    elif name == "MobileNetV2Small":
        model, layers = build("MobileNetV2", size, alpha=0.35)
    else:
        model, layers = build(name, size)
    signature = [tf.TensorSpec([None, size, size, 3], tf.float32, name="x")]

    def call(x: Any) -> Any:
        return model(x, training=mode == "training")

    traced = tf.function(call, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(traced, input_signature=signature, opset=17)
    onnx.save(proto, path)
    print(len(layers))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
