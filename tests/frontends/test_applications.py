"""keras.applications, from `.keras`, tf_keras' `.h5` and SavedModel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import syncbn_convert
from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.keras import sources

from . import applications
from .applications import (
    NAMES,
    WITHOUT_LAYERS,
    Row,
    build,
    measure,
    randomize,
    saved_kinds,
    training_errors,
)

pytestmark = pytest.mark.filterwarnings("ignore")

MOST_TRANSPOSES = 2


def predict(model: Any, x: Any) -> Any:
    session = onnxruntime.InferenceSession(
        model_file.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def check_row(row: Row) -> None:
    print(row)
    assert row.nodes == row.layers
    assert row.error <= row.tolerance
    assert row.application == WITHOUT_LAYERS or row.transposes <= MOST_TRANSPOSES


def test_application_arrives_whole() -> None:
    import keras

    model = build(keras, "MobileNetV2")
    row, _ = measure("MobileNetV2", "memory", model, randomize(model))
    check_row(row)


def test_transposes_are_pushed_out_from_round_squeeze_and_excitation() -> None:
    import keras

    model = build(keras, "EfficientNetB0")
    count = Counter(node.op_type for node in sources.import_model(model).graph)
    assert count["BatchNormalization"] == len(applications.normalization_layers(model)) == 49
    assert count["Transpose"] <= MOST_TRANSPOSES


def check_training(name: str) -> None:
    import keras

    model = build(keras, name)
    randomize(model)
    x = applications.images(model, 8, 1)
    errors = training_errors(name, model, x)
    worst = max(errors, key=lambda row: row[1] / row[2])
    output = errors[0]
    print(
        f"{name:17} training   {len(errors) - 1:4} statistics, output {output[1]:.1e} of "
        f"{output[2]:.1e}; nearest {worst[0]} {worst[1]:.1e} of {worst[2]:.1e}"
    )
    assert all(error <= tolerance for _, error, tolerance in errors)


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_every_application_from_every_file(name: str, tmp_path: Path) -> None:
    import keras

    model = build(keras, name)
    layers = randomize(model)
    x = applications.images(model, 3, 1)
    wanted = model.predict(x, verbose=0)
    allowed = applications.largest_error(name, model, x)
    print()
    for source, path in saved_kinds(name, model, tmp_path).items():
        row, imported = measure(name, source, path, layers)
        check_row(row)
        assert np.abs(predict(imported, x) - wanted).max() <= allowed


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in NAMES if name != WITHOUT_LAYERS])
def test_every_application_trains_as_keras(name: str) -> None:
    print()
    check_training(name)


@pytest.mark.sweep
def test_application_without_normalization_says_so() -> None:
    import keras

    with pytest.raises(ConversionError, match="holds no BatchNormalization"):
        syncbn_convert.convert(build(keras, WITHOUT_LAYERS))
