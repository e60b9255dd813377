"""Small models of Keras 3 and tf_keras, and how they are run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from syncbn_convert.files import model_file

TOLERANCE = 2e-5
"""Relative to the largest value: 2**-24 for each of some 170 roundings in a row, rounded up."""


def random_normalization(model: Any) -> int:
    """Give every BatchNormalization random state that keeps signals at their size; count them."""
    generator = np.random.default_rng(0)
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]
    for layer in layers:
        shape = layer.moving_mean.shape
        if layer.gamma is not None:
            layer.gamma.assign(generator.uniform(0.8, 1.2, shape))
        if layer.beta is not None:
            layer.beta.assign(generator.normal(0, 0.3, shape))
        layer.moving_mean.assign(generator.normal(0, 0.3, shape))
        layer.moving_variance.assign(generator.uniform(0.3, 0.7, shape))
    return len(layers)


def chain(library: Any) -> Any:
    """Make a model of five layers, each of which normalizes in its own way."""
    layers = library.layers
    library.utils.set_random_seed(0)
    x = library.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="first", momentum=0.8)(y))
    y = layers.BatchNormalization(axis=1, center=False, name="rows")(y)
    y = layers.BatchNormalization(scale=False, name="unscaled", epsilon=0.01)(y)
    inner = library.Input((6, 6, 4))
    nested = library.Model(inner, layers.BatchNormalization(name="inside")(inner), name="block")
    y = layers.Flatten()(nested(y))
    y = layers.BatchNormalization(name="flat")(y)
    model = library.Model(x, layers.Dense(3, name="dense")(y))
    random_normalization(model)
    return model


def images(count: int = 6) -> Any:
    return np.random.default_rng(1).normal(size=(count, 8, 8, 3)).astype(np.float32)


def predict(model: ir.Model, x: Any) -> Any:
    session = onnxruntime.InferenceSession(
        model_file.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def close(found: Any, wanted: Any) -> bool:
    return bool(np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max())


def norms(model: ir.Model) -> dict[str, ir.Node]:
    return {str(n.name): n for n in model.graph if n.op_type == "BatchNormalization"}


def value(model: ir.Model, name: str) -> Any:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
