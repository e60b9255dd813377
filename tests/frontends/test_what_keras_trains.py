"""Models of Keras train here as in Keras' `fit`: frozen, penalized, constrained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from keras import layers

import syncbn_convert
from syncbn_convert import ReplicaOptions, Schedule, Sgd, StepOptions, TrainOptions
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.form import provenance, weight_facts
from syncbn_convert.keras import sources

pytestmark = pytest.mark.filterwarnings("ignore")

Array = npt.NDArray[Any]
RATE, MOMENTUM, BATCH, EPOCHS, COUNT = 0.05, 0.9, 16, 3, 48
CLOSE = 1e-5
"""Of each loss and weight, relative: rounding of single precision over the steps."""


def arrays() -> dict[str, Array]:
    random = np.random.default_rng(0)
    images = random.normal(size=(COUNT, 8, 8, 3)).astype(np.float32)
    return {"image": images, "label": random.integers(0, 5, COUNT)}


def backbone(*, trainable: bool) -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="c1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="bn1", synchronized=True)(x))
    x = layers.Conv2D(4, 3, name="c2", kernel_regularizer="l2")(x)
    model = keras.Model(inputs, layers.BatchNormalization(name="bn2")(x), name="backbone")
    model.trainable = trainable
    return model


def with_head(*, norm: bool = False, trainable: bool = False, **dense: Any) -> Any:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D()(backbone(trainable=trainable)(inputs, training=False))
    x = layers.Dense(7, activation="relu", name="hidden", **dense)(x)
    if norm:
        x = layers.BatchNormalization(name="hidden_bn", synchronized=True)(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(x))


def by_hand() -> Any:
    """Each layer with something of its own."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(
        6,
        3,
        use_bias=False,
        kernel_constraint=keras.constraints.MaxNorm(0.3, axis=[0, 1, 2]),
        name="bounded",
    )(inputs)
    x = layers.BatchNormalization(center=False, scale=False, synchronized=True, name="bare")(x)
    x = layers.DepthwiseConv2D(3, depthwise_regularizer="l1", use_bias=False, name="deep")(x)
    x = layers.BatchNormalization(trainable=False, name="still")(layers.ReLU()(x))
    x = layers.Conv2D(5, 1, trainable=False, bias_regularizer="l2", name="fixed")(x)
    return keras.Model(inputs, layers.Softmax()(layers.GlobalMaxPooling2D()(x)))


MODELS: dict[str, Callable[[], Any]] = {
    "frozen backbone, new head": with_head,
    "frozen backbone, head with normalization": lambda: with_head(norm=True),
    "regularizer": lambda: with_head(kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02)),
    "constraint over an axis": lambda: with_head(
        kernel_constraint=keras.constraints.UnitNorm(axis=1)
    ),
    "each layer with something of its own": by_hand,
}


class Losses(keras.callbacks.Callback):  # type: ignore[misc]
    """The loss of each batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del batch
        self.found.append(float(logs["loss"]))


def fit(model: Any) -> list[float]:
    losses, data = Losses(), arrays()
    optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(
        data["image"],
        data["label"],
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[losses],
    )
    return losses.found


def train(model: Any, replicas: int = 1, **options: Any) -> tuple[dict[str, Array], Any]:
    form, report = train_with_report(
        model,
        arrays(),
        StepOptions(
            loss="softmax-cross-entropy",
            labels="label",
            optimizer=Sgd(momentum=MOMENTUM),
            **options,
        ),
        TrainOptions(
            schedule=Schedule(learning_rate=RATE), epochs=EPOCHS, batch_size=BATCH, shuffle=False
        ),
        replicas=ReplicaOptions(replicas=replicas),
    )
    assert isinstance(form, ir.Model)
    found = {
        name: value.const_value.numpy()
        for name, value in form.graph.initializers.items()
        if value.const_value is not None
    }
    return found, report


SELDOM = ("frozen backbone, new head", "regularizer")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.sweep if kind in SELDOM else ()) for kind in MODELS],
)
def test_losses_and_weights_are_those_of_fit(kind: str) -> None:
    model = MODELS[kind]()
    before = {weight.path: np.array(weight) for weight in model.weights}
    frozen = {weight.path for weight in model.non_trainable_weights if "moving" not in weight.path}
    runs = [train(model, replicas) for replicas in (1, 2)]
    wanted = fit(model)
    for found, report in runs:
        np.testing.assert_allclose(report.losses, wanted, rtol=CLOSE)
        for weight in model.weights:
            value = np.array(weight)  # in another layout there, which losses are sensitive to
            mine, theirs = np.sort(found[weight.path].ravel()), np.sort(value.ravel())
            if weight.path in frozen:
                np.testing.assert_array_equal(mine, theirs)
                np.testing.assert_array_equal(value, before[weight.path])
            error = np.abs(mine - theirs).max()
            assert error <= CLOSE * max(np.abs(value).max(), 1.0), weight.path


def test_a_frozen_layer_is_trained_if_it_is_named() -> None:
    model = with_head()
    before = sources.import_model(model).graph.initializers
    found, report = train(model, trainable=("^c1/", "^head/"))
    assert report.parameters == 4
    for name, moves in (("c1/kernel", True), ("c2/kernel", False), ("head/kernel", True)):
        old = before[name].const_value
        assert old is not None
        assert bool(np.any(old.numpy() != found[name])) == moves, name


def test_what_is_frozen_stays_so_through_files(tmp_path: Path) -> None:
    model, form = tmp_path / "model.keras", tmp_path / "form.onnx"
    with_head(norm=True).save(model)
    syncbn_convert.convert_file(model, form, verify=False)
    _, report = train(form)
    assert report.parameters == 6
    reasons = {record.node: record.reason for record in report.records}
    assert reasons["c1/kernel"] == "trainable=False in Keras, and trained only if it is named"


def random_model() -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.RandomFlip(name="flip")(inputs)
    x = layers.Conv2D(4, 3, activity_regularizer="l2", name="conv")(x)
    x = layers.SpatialDropout2D(0.5, name="spatial")(x)
    x = layers.BatchNormalization(name="bn")(layers.GaussianNoise(0.1, name="noise")(x))
    x = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D()(x))
    x = layers.AlphaDropout(0.3, name="alpha")(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(x))


def test_layers_that_draw_do_so_in_training_alone() -> None:
    model = random_model()
    imported = sources.import_model(model)
    draws = {
        str(node.name): provenance.draw_of(node)
        for node in imported.graph
        if provenance.draw_of(node) is not None
    }
    assert draws == {
        "spatial": {"layer": "spatial", "kind": "dropout", "rate": 0.5, "shared": [2, 3]},
        "noise": {"layer": "noise", "kind": "gaussian_noise", "stddev": 0.1},
        "drop": {"layer": "drop", "kind": "dropout", "rate": 0.5},
    }
    remarks = weight_facts.remarks_of(imported)
    assert [remark.split("'")[1] for remark in remarks] == ["conv", "flip", "alpha"]
    weights, report = train(model)
    again, _ = train(model)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert set(remarks) <= set(report.notes)
    assert not [note for note in report.notes if "draws random numbers" in note]
