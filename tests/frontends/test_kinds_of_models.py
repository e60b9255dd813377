"""Subclassed models, wrappers, 16-bit policies, several inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import syncbn_convert
from syncbn_convert.errors import ConversionError, VerificationError
from syncbn_convert.keras import reading, sources

from .models import close, images, norms, predict, random_normalization

pytestmark = pytest.mark.filterwarnings("ignore")


def subclassed(library: Any, *, called: bool = True) -> Any:
    class Net(library.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="net")
            self.conv = library.layers.Conv2D(4, 3, name="conv")
            self.norm = library.layers.BatchNormalization(name="norm")

        def call(self, x: Any, training: Any = None) -> dict[str, Any]:
            y = self.norm(self.conv(x), training=training)
            return {"features": y, "above": y > 0}

    model = Net()
    if called:
        model(images(2))
        random_normalization(model)
    return model


def sixteen_bit(library: Any, policy: str) -> Any:
    layers = library.layers
    x = library.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, dtype=policy)(x)
    y = layers.ReLU(dtype=policy)(layers.BatchNormalization(name="norm", dtype=policy)(y))
    return library.Model(x, layers.Activation("linear", dtype="float32")(y))


def each_step(library: Any) -> Any:
    layers = library.layers
    x = library.Input((4, 6), name="x")
    return library.Model(x, layers.TimeDistributed(layers.BatchNormalization(name="norm"))(x))


def both_directions(library: Any) -> Any:
    layers = library.layers
    x = library.Input((4, 6), name="x")
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    return library.Model(x, layers.BatchNormalization(name="norm")(y))


def volumes(library: Any) -> Any:
    layers = library.layers
    x = library.Input((5, 5, 5, 2), name="x")
    return library.Model(x, layers.BatchNormalization(name="norm")(layers.Conv3D(3, 2)(x)))


def two_ways(library: Any) -> Any:
    a, b = (library.Input((4,), name=name) for name in "ab")
    norm = library.layers.BatchNormalization(name="norm")
    return library.Model({"a": a, "b": b}, {"of_a": norm(a), "of_b": norm(b)})


KINDS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "subclassed": (subclassed, 1),
    "float16": (lambda library: sixteen_bit(library, "mixed_float16"), 1),
    "bfloat16": (lambda library: sixteen_bit(library, "mixed_bfloat16"), 1),
    "TimeDistributed": (each_step, 0),
    "Bidirectional": (both_directions, 1),
    "rank 5": (volumes, 1),
    "two ways": (two_ways, 2),
}


CASES = [(kind, library) for kind in KINDS for library in ("keras", "tf_keras")]
QUICK = [
    ("subclassed", "keras"),
    ("float16", "keras"),
    ("TimeDistributed", "keras"),
    ("two ways", "keras"),
    ("subclassed", "tf_keras"),
    ("TimeDistributed", "tf_keras"),
    ("Bidirectional", "tf_keras"),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("kind", "library"), [case for case in CASES if case not in QUICK])
def test_further_layer_arrives_and_predicts_as_its_model(kind: str, library: str) -> None:
    check(kind, library)


@pytest.mark.parametrize(("kind", "library"), QUICK)
def test_layer_arrives_and_predicts_as_its_model(kind: str, library: str) -> None:
    check(kind, library)


def check(kind: str, library: str) -> None:
    make, nodes = KINDS[kind]
    model = make(__import__(library))
    count = random_normalization(model)
    imported = reading.read(model)
    steps = 4 if library == "keras" else 1  # Keras 3 calls the layer for each step
    assert len(norms(imported.model)) == (nodes or steps)
    moving = {node.inputs[3] for node in norms(imported.model).values()}
    assert len(moving) == count == 1
    comparison = imported.compare(syncbn_convert.VerifyOptions())
    assert comparison.relative_error <= comparison.tolerance < 0.1


def test_every_output_has_a_name_of_its_own() -> None:
    import keras

    norm = keras.layers.BatchNormalization(name="norm")
    a, b = (keras.Input((4,), name=name) for name in ("a", "b"))
    imported = sources.import_model(keras.Model([a, b], [norm(a), norm(b)]))
    assert [value.name for value in imported.graph.outputs] == ["norm", "norm_1"]


def test_subclassed_model_trains_as_keras() -> None:
    import keras

    model = subclassed(keras)
    form = syncbn_convert.convert(model, verify=False)
    x = images(16)
    session = syncbn_convert.ReplicaSession(form)
    outputs = session.step({"input": x}).outputs
    assert close(outputs["features"], np.asarray(model(x, training=True)["features"]))
    assert close(session.state["net/norm/moving_variance"], model.norm.moving_variance.numpy())


def test_subclass_of_the_layer_keeps_what_it_adds() -> None:
    import keras

    class Shifted(keras.layers.BatchNormalization):  # type: ignore[misc]
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return super().call(inputs, training=training, mask=mask) + 1

    model = keras.Sequential([keras.Input((4,), name="x"), Shifted(name="shifted")])
    random_normalization(model)
    imported = reading.read(model)
    assert len(norms(imported.model)) == 1
    comparison = imported.compare(syncbn_convert.VerifyOptions())
    assert comparison.relative_error <= comparison.tolerance


def with_function(library: Any) -> Any:
    class Block(library.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = library.layers.Conv2D(4, 3)
            self.norm = library.layers.BatchNormalization(name="norm")

        @tf.function  # type: ignore[untyped-decorator]
        def call(self, x: Any) -> Any:
            return self.norm(self.conv(x), training=False)

    x = library.Input((8, 8, 3), name="image")
    model = library.Model(x, Block()(x))
    random_normalization(model)
    return model


@pytest.mark.parametrize("called", [False, True])
def test_function_inside_a_model_stays_what_it_is(called: bool) -> None:
    import tf_keras

    model = with_function(tf_keras)
    if called:
        model.predict(images(), verbose=0)
    imported = reading.read(model)
    assert len(norms(imported.model)) == 1
    comparison = imported.compare(syncbn_convert.VerifyOptions())
    assert comparison.relative_error <= comparison.tolerance < 1e-4
    assert close(predict(imported.model, images()), model.predict(images(), verbose=0))


def test_model_that_computes_with_other_weights_than_it_holds_is_refused() -> None:
    """Keras 3 builds the layer inside the function, which keeps initializers for weights."""
    import keras

    with pytest.raises(VerificationError, match="differs from the framework's predictions"):
        syncbn_convert.convert(with_function(keras))


def test_model_that_was_not_called_is_refused() -> None:
    import keras

    with pytest.raises(ConversionError, match="the shapes of its inputs are not known; call it"):
        syncbn_convert.convert(subclassed(keras, called=False))


def test_layer_in_a_loop_is_refused() -> None:
    import keras

    x = keras.Input((None, 6), name="x")
    layer = keras.layers.TimeDistributed(keras.layers.BatchNormalization(name="norm"))
    with pytest.raises(ConversionError, match="is called inside a loop"):
        syncbn_convert.convert(keras.Model(x, layer(x)))


def test_masked_layer_is_left_alone() -> None:
    import keras
    from keras import layers

    x = keras.Input((5, 4), name="x")
    masked = layers.BatchNormalization(name="masked")(layers.Masking()(x))
    model = keras.Model(x, layers.BatchNormalization(name="usual")(layers.Flatten()(masked)))
    _, report = syncbn_convert.convert_with_report(model, verify=False)
    reasons = {record.node: record.reason for record in report.records}
    assert reasons["masked"].startswith("called with a mask")
    assert reasons["usual"] == ""
