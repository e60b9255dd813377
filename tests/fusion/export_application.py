"""Write an untrained keras.applications model with random normalization; print its layers' number.

Run as `python export_application.py NAME SIZE FILE`. The variables enter the traced function as
arguments, so that tf2onnx folds nothing; it writes each normalization in elementwise operators.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx


def build(name: str, size: int, **options: Any) -> tuple[Any, list[Any]]:
    """Return a model of keras.applications and its normalization layers, with random state."""
    keras.utils.set_random_seed(0)
    arguments = {"weights": None, "input_shape": (size, size, 3), "classifier_activation": None}
    model = getattr(keras.applications, name)(**arguments, **options)
    return model, randomize(model)


def randomize(model: Any) -> list[Any]:
    """Give every normalization layer random state; return the layers."""
    generator = np.random.default_rng(0)
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        if layer.gamma is not None:
            layer.gamma.assign(generator.uniform(0.8, 1.2, layer.gamma.shape))
        # keeps signals as large as they are: Keras' kernels and a Relu halve their variance
        layer.moving_variance.assign(generator.uniform(0.3, 0.7, layer.moving_variance.shape))
        for variable in (layer.beta, layer.moving_mean):
            if variable is not None:
                variable.assign(generator.normal(0, 0.3, variable.shape))
    return layers


def main(name: str, size: int, path: str) -> None:
    model, layers = build(name, size)
    trainable = model.trainable_variables
    variables = [*trainable, *model.non_trainable_variables]
    signature = [tf.TensorSpec([None, size, size, 3], tf.float32, name="x")]
    signature += [tf.TensorSpec(v.shape, v.dtype, name=f"v{i}") for i, v in enumerate(variables)]

    def infer(x: Any, *values: Any) -> Any:
        count = len(trainable)
        return model.stateless_call(values[:count], values[count:], x, training=False)[0]

    traced = tf.function(infer, input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(traced, input_signature=signature, opset=17)
    inputs = {info.name.partition(":")[0]: info.name for info in proto.graph.input}
    for index, variable in enumerate(variables):
        if f"v{index}" in inputs:
            tensor = onnx.numpy_helper.from_array(np.asarray(variable), inputs[f"v{index}"])
            proto.graph.initializer.append(tensor)
    bound = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.input if info.name not in bound]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    onnx.save(proto, path)
    print(len(layers))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
