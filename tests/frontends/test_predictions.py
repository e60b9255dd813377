"""The comparison of an import with its framework's predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import syncbn_convert
from syncbn_convert.errors import VerificationError
from syncbn_convert.keras import reading
from syncbn_convert.verification import VerifyOptions

from .models import chain, images, random_normalization

pytestmark = pytest.mark.filterwarnings("ignore")


def test_report_says_how_near_predictions_are() -> None:
    import keras

    _, report = syncbn_convert.convert_with_report(chain(keras))
    assert any("equals the framework's predictions" in note for note in report.notes)
    _, report = syncbn_convert.convert_with_report(chain(keras), verify=False)
    assert not report.notes


def test_import_that_predicts_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from syncbn_convert.keras.keras_layers import read_layer

    def wrong(layer: Any, library: Any, **seen: bool) -> Any:
        found = read_layer(layer, library, **seen)
        return dataclasses.replace(found, epsilon=1.01 * found.epsilon)

    model = chain(keras)
    monkeypatch.setattr("syncbn_convert.keras.tracing.read_layer", wrong)
    with pytest.raises(VerificationError, match="differs from the framework's predictions"):
        syncbn_convert.convert(model)
    assert reading.read(model).compare(VerifyOptions(rtol=0.1)).tolerance == pytest.approx(0.1)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_twin_of_the_graph_is_the_model_in_double_precision(library: str) -> None:
    import tensorflow as tf

    from syncbn_convert.keras.functions import signature_of, trace_model
    from syncbn_convert.keras.tracing import freeze
    from syncbn_convert.keras.twin import build_twin

    used = __import__(library)
    model = chain(used)
    frozen, _ = freeze(trace_model(model, signature_of(model, used)).concrete)
    x = images().astype(np.float64)
    [found] = (value.numpy() for value in build_twin(frozen)(tf.constant(x)))
    wanted = float64_copy(model, used)(x, training=False).numpy()
    assert found.dtype == np.float64
    largest = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= 1e-9 * largest  # epsilons of a graph are float32
    assert np.abs(model(images(), training=False).numpy() - wanted).max() > 1e-9 * largest


def float64_copy(model: Any, library: Any) -> Any:
    """Return the model with the same weights, made of float64 layers by the library itself."""
    set_policy = (
        library.config.set_dtype_policy
        if library.__name__ == "keras"
        else library.mixed_precision.set_global_policy
    )
    set_policy("float64")
    library.backend.set_floatx("float64")
    try:
        copy = chain(library)
    finally:
        library.backend.set_floatx("float32")
        set_policy("float32")
    copy.set_weights(model.get_weights())
    return copy


def test_noise_is_that_of_the_framework() -> None:
    import keras

    model = chain(keras)
    imported = reading.read(model)
    comparison = imported.compare(VerifyOptions())
    assert 0 < comparison.noise < comparison.tolerance
    assert comparison.relative_error <= comparison.tolerance


def test_tokens_of_a_model_that_says_they_are_floats() -> None:
    import tf_keras
    from tf_keras import layers

    tokens = tf_keras.Input((12,), name="tokens")
    y = layers.Conv1D(6, 3)(layers.Embedding(50, 8)(tokens))
    model = tf_keras.Model(tokens, layers.Dense(3)(layers.BatchNormalization()(y)))
    random_normalization(model)
    comparison = reading.read(model).compare(VerifyOptions())
    assert comparison.relative_error <= comparison.tolerance < 1e-4
