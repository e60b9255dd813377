"""Models of tf_keras: its files, and what its layers have that those of Keras 3 do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import syncbn_convert
from syncbn_convert import ConvertOptions, LayerRule, SyncBatchNormalizationOptions
from syncbn_convert.keras import sources
from syncbn_convert.reports import RewriteReport

from .models import chain, close, images, norms, predict, random_normalization, value

pytestmark = pytest.mark.filterwarnings("ignore")

UNBIASED = "unbiased moving variance"


def kinds_of_layers() -> Any:
    """Make a model of the layers that are special in tf_keras."""
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((8, 8, 3), name="image")
    y = layers.BatchNormalization(name="fused")(x)
    y = layers.BatchNormalization(name="apart", fused=False)(y)
    y = layers.experimental.SyncBatchNormalization(name="sync")(y)
    y = layers.BatchNormalization(name="synchronized", synchronized=True)(y)
    y = layers.TimeDistributed(layers.BatchNormalization(), name="each_row")(y)
    y = layers.BatchNormalization(
        name="penalized", gamma_regularizer="l2", beta_constraint="non_neg"
    )(y)
    model = tf_keras.Model(x, layers.Flatten()(y))
    random_normalization(model)
    return model


def changes(report: RewriteReport) -> dict[str, list[str]]:
    return {record.node: record.detail.get("changes", []) for record in report.records}


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_files_give_what_the_model_in_memory_gives(suffix: str, tmp_path: Path) -> None:
    import tf_keras

    model = chain(tf_keras)
    path = tmp_path / f"model{suffix}"
    model.save(path)
    x = images()
    wanted = model.predict(x, verbose=0)
    imported = [sources.import_model(source) for source in (model, path)]
    for found in imported:
        assert list(norms(found)) == ["first", "rows", "unscaled", "inside", "flat"]
        assert close(predict(found, x), wanted)
    for layer in (model.get_layer("first"), model.get_layer("flat")):
        name = layer.moving_variance.name.partition(":")[0]
        assert np.array_equal(value(imported[1], name), layer.moving_variance.numpy())
    assert norms(imported[1])["first"].attributes["momentum"].as_float() == pytest.approx(0.8)
    assert norms(imported[1])["unscaled"].attributes["epsilon"].as_float() == pytest.approx(0.01)


def test_form_trains_as_each_kind_of_layer() -> None:
    model = kinds_of_layers()
    form, report = syncbn_convert.convert_with_report(model, verify=False)
    found = changes(report)
    assert [name for name, texts in found.items() if UNBIASED in texts] == ["fused", "penalized"]
    assert found["penalized"][1:] == ["gamma penalty l1=0 l2=0.01", "beta constraint NonNeg"]
    x = images(16)
    session = syncbn_convert.ReplicaSession(form)
    outputs = session.step({"image": x}).outputs
    wanted = np.asarray(model(x, training=True))
    assert close(outputs[model.output_names[0]], wanted)
    assert outputs["regularization_loss"] == pytest.approx(float(sum(model.losses)), rel=1e-5)
    for variable in model.non_trainable_variables:
        name = variable.name.partition(":")[0]
        assert np.allclose(session.state[name], variable.numpy(), rtol=1e-5, atol=1e-6), name
    assert len(session.state) == 12


def test_what_is_asked_for_goes_before_what_the_layer_has() -> None:
    model = kinds_of_layers()
    population = SyncBatchNormalizationOptions(variance="population")
    everywhere = ConvertOptions(parameters=population)
    one = ConvertOptions(layers=(LayerRule(pattern="^fused$", options=population),))
    for options, left in ((everywhere, []), (one, ["penalized"])):
        _, report = syncbn_convert.convert_with_report(model, options, verify=False)
        found = changes(report)
        assert [name for name, texts in found.items() if UNBIASED in texts] == left


def test_layer_of_the_node_outlives_conversion_and_folding() -> None:
    import tf_keras

    form = syncbn_convert.convert(chain(tf_keras), verify=False)
    key = "syncbn_convert.keras_layer"
    converted = [n.metadata_props[key] for n in form.graph if key in n.metadata_props]
    folded = syncbn_convert.fold(form, verify=False)
    assert converted == ["first", "rows", "unscaled", "inside", "flat"]
    assert [node.metadata_props[key] for node in norms(folded).values()] == converted


def test_corrections_of_the_batch_are_left_alone_with_their_reason() -> None:
    import tf_keras
    from tf_keras import layers

    model = tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 3), name="image"),
            layers.BatchNormalization(name="renorm", renorm=True),
            layers.BatchNormalization(name="virtual", virtual_batch_size=2),
            layers.BatchNormalization(name="frozen", trainable=False),
            layers.BatchNormalization(name="usual"),
        ]
    )
    random_normalization(model)
    _, report = syncbn_convert.convert_with_report(model, verify=False)
    assert {record.node: record.reason for record in report.records} == {
        "renorm": "renorm=True corrects the statistics of the batch by the moving ones",
        "virtual": "virtual_batch_size normalizes pieces of the batch apart",
        "frozen": "trainable=False in Keras: stays in inference mode",
        "usual": "",
    }


def test_normalization_over_several_axes_is_refused() -> None:
    import tf_keras

    layer = tf_keras.layers.BatchNormalization(axis=[1, 2], name="both")
    model = tf_keras.Sequential([tf_keras.Input((4, 3)), layer])
    with pytest.raises(syncbn_convert.ConversionError, match=r"'both' normalizes over the axes"):
        syncbn_convert.convert(model)
