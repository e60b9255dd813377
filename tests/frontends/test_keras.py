"""Keras models: every layer alive, predictions and training as Keras has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import syncbn_convert
from syncbn_convert.errors import ConversionError, ModelFileError
from syncbn_convert.files import model_file
from syncbn_convert.keras import sources

from .models import close, predict, random_normalization

pytestmark = pytest.mark.filterwarnings("ignore")

CLI = [sys.executable, "-m", "syncbn_convert"]


def mixed_model() -> Any:
    """Make a model of layers that are hard to keep alive."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    shared = layers.BatchNormalization(name="shared", momentum=0.7, epsilon=0.01)
    y = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = shared(shared(y))
    y = layers.BatchNormalization(axis=1, center=False, name="rows", synchronized=True)(y)
    y = layers.BatchNormalization(axis=2, scale=False, name="columns")(y)
    inner = keras.Input((6, 6, 4))
    nested = keras.Model(inner, layers.BatchNormalization(name="inside")(inner), name="block")
    y = nested(layers.Activation("gelu")(y))
    y = layers.Conv2D(4, 1, groups=2, name="grouped")(y)
    y = layers.BatchNormalization(name="frozen", trainable=False)(y)
    y = layers.Reshape((36, 4))(y)
    y = layers.BatchNormalization(name="sequence")(y)
    y = layers.Dense(5, name="dense")(layers.Flatten()(y))
    y = layers.BatchNormalization(name="flat")(y)
    return keras.Model(x, layers.Softmax(name="probabilities")(y))


def test_every_layer_is_one_node_with_its_parameters() -> None:
    model = mixed_model()
    random_normalization(model)
    imported = sources.import_model(model)
    norms = {str(n.name): n for n in imported.graph if n.op_type == "BatchNormalization"}
    assert len(norms) == 8
    first, second = (node for name, node in norms.items() if name.startswith("shared"))
    assert list(first.inputs)[1:] == list(second.inputs)[1:]
    assert first.attributes["momentum"].as_float() == pytest.approx(0.7)
    assert first.attributes["epsilon"].as_float() == pytest.approx(0.01)
    assert [v.name for v in imported.graph.inputs] == ["image"]
    for layer in (model.get_layer("flat"), model.get_layer("rows")):
        initializers = imported.graph.initializers
        moving = initializers[f"{layer.name}/moving_variance"].const_value
        assert moving is not None
        assert np.array_equal(moving.numpy(), np.asarray(layer.moving_variance))
    rows, columns = norms["rows"], norms["columns"]
    assert rows.inputs[2].producer().op_type == "Constant"  # type: ignore[union-attr]
    assert columns.inputs[1].producer().op_type == "Constant"  # type: ignore[union-attr]
    x = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype(np.float32)
    assert close(predict(imported, x), model.predict(x, verbose=0))


def test_training_form_trains_as_keras() -> None:
    model = mixed_model()
    random_normalization(model)
    form, report = syncbn_convert.convert_with_report(model)
    reasons = {record.node: record.reason for record in report.records}
    assert reasons["frozen"] == "trainable=False in Keras: stays in inference mode"
    assert [name for name, reason in reasons.items() if reason] == ["frozen"]
    x = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype(np.float32)
    session = syncbn_convert.ReplicaSession(form)
    outputs = session.step({"image": x}).outputs
    state = session.state
    wanted = np.asarray(model(x, training=True))
    assert close(outputs[str(model.output_names[0])], wanted)
    for variable in model.non_trainable_variables:
        if variable.path in state:
            assert close(state[variable.path], np.asarray(variable)), variable.path
    assert len(state) == 12


def test_file_is_converted_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    mixed_model().save(path)
    done = subprocess.run([*CLI, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "frozen" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.keras", "model.sync.onnx"]


def test_same_model_gives_the_same_bytes() -> None:
    model = mixed_model()
    first, second = (model_file.to_proto(sources.import_model(model)) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_model_without_normalization_is_refused() -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ConversionError, match="holds no BatchNormalization"):
        syncbn_convert.convert(model)


def test_truncated_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    mixed_model().save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match=r"model\.keras: not a \.keras file"):
        syncbn_convert.inspect(path)


def test_without_tensorflow_the_extra_is_named(tmp_path: Path) -> None:
    mixed_model().save(tmp_path / "model.keras")
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from syncbn_convert.cli.main import main\n"
        f"sys.exit(main(['inspect', {str(tmp_path / 'model.keras')!r}]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'syncbn-convert[tensorflow]'" in done.stderr
