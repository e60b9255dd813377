"""keras.applications with random normalization, from every kind of file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import syncbn_convert
from syncbn_convert.keras import reading
from syncbn_convert.verification import VerifyOptions
from syncbn_convert.verification.tolerance import base_tolerance, scale_of

SIZE = 96
LARGEST_SUM = 3 * 3 * 512
"""Terms of the largest convolution in these networks."""
NAMES = [
    "ResNet50",
    "ResNet50V2",
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "DenseNet121",
    "InceptionV3",
    "Xception",
    "NASNetMobile",
    "ConvNeXtTiny",
]


WITHOUT_LAYERS = "ConvNeXtTiny"
CONVNEXT_LAYERS = "tf_keras.src.applications.convnext"
"""tf_keras does not find the layers of its own ConvNeXt when it reads a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one application from one kind of file."""

    application: str
    source: str
    layers: int
    nodes: int
    transposes: int
    error: float
    tolerance: float
    noise: float

    def __str__(self) -> str:
        return (
            f"{self.application:17} {self.source:10} {self.layers:4} {self.nodes:4} "
            f"{self.transposes:3}  {self.error:.1e}  {self.tolerance:.1e}  {self.noise:.1e}"
        )


def build(library: Any, name: str) -> Any:
    """Make an application of Keras 3 or tf_keras, random normalization, no dropout."""
    library.utils.set_random_seed(0)
    model = getattr(library.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), classifier_activation=None, classes=10
    )
    for layer in model.layers:
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    return model


def normalization_layers(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]


def images(model: Any, count: int, seed: int) -> npt.NDArray[np.float32]:
    """Return random images [count, SIZE, SIZE, 3] of the range that the model takes.

    One that begins with Rescaling takes 0 to 255: smaller values would leave hardly anything to
    normalize, and rounding errors as large as the rest.
    """
    generator = np.random.default_rng(seed)
    shape = (count, SIZE, SIZE, 3)
    if any(type(layer).__name__ == "Rescaling" for layer in model.layers):
        return generator.uniform(0, 255, shape).astype(np.float32)
    return generator.normal(size=shape).astype(np.float32)


def randomize(model: Any) -> int:
    """Give every BatchNormalization random state round that of a random batch; count them.

    With statistics that are far from those of the data, signals grow from layer to layer until
    squeeze-and-excitation is a step function, and rounding errors become as large as outputs.
    """
    generator = np.random.default_rng(0)
    layers = normalization_layers(model)
    for layer in layers:
        shape = layer.moving_mean.shape
        if layer.gamma is not None:
            layer.gamma.assign(generator.uniform(0.8, 1.2, shape))
        if layer.beta is not None:
            layer.beta.assign(generator.normal(0, 0.3, shape))
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(images(model, 8, 2), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        shift = generator.normal(0, 0.3, mean.shape) * np.sqrt(variance)
        layer.moving_mean.assign(mean + shift)
        layer.moving_variance.assign(variance * generator.uniform(0.6, 1.5, mean.shape) + 1e-3)
    return len(layers)


def copy_weights(source: Any, target: Any) -> None:
    """Give the layers of one model the weights of the other's, in order.

    A layer of tf_keras may have a further one (the count of Normalization), which it keeps.
    """
    pairs = ([layer for layer in model.layers if layer.weights] for model in (source, target))
    for own, other in zip(*pairs, strict=True):
        values = own.get_weights()
        other.set_weights([*values, *other.get_weights()[len(values) :]])


def measure(name: str, source: str, path: Any, layers: int) -> tuple[Row, Any]:
    """Import a file; compare it with its framework. Return a row, and the imported model."""
    own = [CONVNEXT_LAYERS] if (name, source) == (WITHOUT_LAYERS, ".h5") else []
    with syncbn_convert.custom_objects(*own):
        found = reading.read(path)
    comparison = found.compare(VerifyOptions())
    count = Counter(node.op_type for node in found.model.graph)
    row = Row(
        application=name,
        source=source,
        layers=layers,
        nodes=count["BatchNormalization"],
        transposes=count["Transpose"],
        error=comparison.relative_error,
        tolerance=comparison.tolerance,
        noise=comparison.noise,
    )
    return row, found.model


def saved_kinds(name: str, model: Any, folder: Path) -> dict[str, Any]:
    """Save a Keras 3 model as `.keras`, as SavedModel, and as tf_keras' `.h5`."""
    import tf_keras

    model.save(folder / "model.keras")
    model.export(folder / "exported", verbose=False)
    twin = build(tf_keras, name)
    copy_weights(model, twin)
    twin.save(folder / "model.h5")
    return {
        ".keras": folder / "model.keras",
        ".h5": folder / "model.h5",
        "SavedModel": folder / "exported",
    }


def training_errors(name: str, model: Any, x: Any) -> list[tuple[str, float, float]]:
    """Return name, relative error and tolerance of outputs and statistics of a training step.

    The tolerance is eight times the error of Keras itself against Keras in float64, at least what
    one sum may lose.
    """
    wide = float64_twin(name, model)
    form = syncbn_convert.convert(model, verify=False)
    session = syncbn_convert.ReplicaSession(form)
    outputs = session.step({str(model.inputs[0].name): x}).outputs
    single = np.asarray(model(x, training=True))
    exact = np.asarray(wide(x.astype(np.float64), training=True))
    rows = [("output", outputs[str(model.output_names[0])], single, exact)]
    pairs = zip(model.non_trainable_variables, wide.non_trainable_variables, strict=True)
    for variable, twin in pairs:
        if variable.path in session.state:
            found = session.state[variable.path]
            rows.append((variable.path, found, variable.numpy(), twin.numpy()))
    assert len(rows) == 1 + len(session.state)
    return [_error(*row) for row in rows]


def _error(name: str, found: Any, single: Any, exact: Any) -> tuple[str, float, float]:
    scale = scale_of(single)
    noise = float(np.abs(single.astype(np.float64) - exact).max()) / scale
    error = float(np.abs(found.astype(np.float64) - single).max()) / scale
    return name, error, max(base_tolerance(np.dtype(np.float32), LARGEST_SUM), 8 * noise)


def float64_twin(name: str, model: Any) -> Any:
    """Return the same application of Keras 3 in float64."""
    import keras

    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        twin = build(keras, name)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    twin.set_weights(model.get_weights())
    return twin


def largest_error(name: str, model: Any, x: Any) -> float:
    """Return the difference to predictions of Keras that its own error against float64 allows."""
    single = model.predict(x, verbose=0)
    exact = float64_twin(name, model).predict(x.astype(np.float64), verbose=0)
    base = base_tolerance(np.dtype(np.float32), LARGEST_SUM) * scale_of(single)
    return max(base, 8 * float(np.abs(single - exact).max()))
