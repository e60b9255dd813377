"""SavedModel folders: with Keras' layers in them, and with nothing but a graph."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import syncbn_convert
from syncbn_convert.errors import ModelFileError
from syncbn_convert.keras import reading, sources

from .models import chain, close, images, norms, predict, random_normalization, value

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ["first", "rows", "unscaled", "inside", "flat"]


def export(model: Any, path: Path) -> None:
    model.export(path, verbose=False)


def save(model: Any, path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(model, str(path))


def save_with_layers(model: Any, path: Path) -> None:
    model.save(path, save_format="tf")


@pytest.mark.parametrize(
    ("library", "write"),
    [("keras", export), ("keras", save), ("tf_keras", save), ("tf_keras", save_with_layers)],
)
def test_folder_gives_the_layers_of_the_model(
    library: str, write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    model = chain(__import__(library))
    write(model, tmp_path / "saved")
    own, found = sources.import_model(model), sources.import_model(tmp_path / "saved")
    assert list(norms(found)) == NAMES == list(norms(own))
    x = images()
    assert close(predict(found, x), model.predict(x, verbose=0))
    for name in NAMES:
        mine, theirs = norms(own)[name], norms(found)[name]
        epsilons = [node.attributes["epsilon"].as_float() for node in (mine, theirs)]
        assert np.float32(epsilons[0]) == np.float32(epsilons[1])
        for parameter in (v.name for v in mine.inputs[1:] if v is not None and v.is_initializer()):
            assert np.array_equal(value(found, str(parameter)), value(own, str(parameter)))
    knows = write is save_with_layers
    momentum = norms(found)["first"].attributes["momentum"].as_float()
    assert momentum == pytest.approx(0.8 if knows else 0.99)
    _, report = syncbn_convert.convert_with_report(tmp_path / "saved", verify=False)
    assert (
        any("momentum and trainable of layers are not in the SavedModel" in n for n in report.notes)
        != knows
    )
    assert report.converted == len(NAMES)


def test_layer_of_a_graph_that_is_called_twice_is_one_layer(tmp_path: Path) -> None:
    import keras
    from keras import layers

    x = keras.Input((8, 8, 3), name="image")
    shared = layers.BatchNormalization(name="shared")
    model = keras.Model(x, layers.GlobalAveragePooling2D()(shared(shared(x))))
    random_normalization(model)
    export(model, tmp_path / "saved")
    imported = sources.import_model(tmp_path / "saved")
    first, second = norms(imported).values()
    assert list(first.inputs)[1:] == list(second.inputs)[1:]
    assert [node.op_type for node in imported.graph] == [
        "Transpose",
        "BatchNormalization",
        "BatchNormalization",
        "GlobalAveragePool",
        "Squeeze",
    ]


def test_layer_behind_a_convolution_compiled_for_xla(tmp_path: Path) -> None:
    import keras
    from keras import layers

    x = keras.Input((8, 8, 6), name="image")
    y = layers.Conv2D(12, 3, groups=3, name="grouped")(x)
    y = layers.BatchNormalization(name="after")(y)
    model = keras.Model(x, layers.GlobalAveragePooling2D()(y))
    random_normalization(model)
    export(model, tmp_path / "saved")
    imported = sources.import_model(tmp_path / "saved")
    assert list(norms(imported)) == ["after"]
    assert [node.attributes["group"].as_int() for node in imported.graph if node.op_type == "Conv"]
    images_of_six = np.random.default_rng(2).normal(size=(3, 8, 8, 6)).astype(np.float32)
    assert close(predict(imported, images_of_six), model.predict(images_of_six, verbose=0))


def test_sixteen_bit_layers_of_a_graph(tmp_path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    x = tf_keras.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, dtype="mixed_float16")(x)
    y = layers.BatchNormalization(name="half", dtype="mixed_float16")(y)
    model = tf_keras.Model(x, layers.Activation("linear", dtype="float32")(y))
    random_normalization(model)
    save(model, tmp_path / "saved")
    imported = reading.read(tmp_path / "saved")
    assert list(norms(imported.model)) == ["half"]
    comparison = imported.compare(syncbn_convert.VerifyOptions())
    assert comparison.relative_error <= comparison.tolerance


def test_what_is_not_exactly_a_layer_stays_as_it_is(tmp_path: Path) -> None:
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.mean = tf.Variable([0.1, 0.2, 0.3], name="odd/moving_mean")
            self.variance = tf.Variable([0.5, 0.6, 0.7], name="odd/moving_variance")

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            factor = tf.math.rsqrt(self.variance + 1e-3)
            return {"y": x * factor + (-self.mean) * factor, "factor": factor}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.__call__)
    assert not norms(sources.import_model(tmp_path / "saved"))


def test_faulty_folders_are_one_line(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"is a folder without saved_model\.pb"):
        syncbn_convert.inspect(tmp_path / "empty")
    tf.saved_model.save(tf.Module(), str(tmp_path / "module"))
    with pytest.raises(ModelFileError, match="has no signature to serve"):
        syncbn_convert.inspect(tmp_path / "module")
    export(chain(keras), tmp_path / "cut")
    (tmp_path / "cut" / "saved_model.pb").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(ModelFileError, match=r"cut: cannot be read by TensorFlow"):
        syncbn_convert.inspect(tmp_path / "cut")


def test_folder_is_converted_on_the_command_line(tmp_path: Path) -> None:
    import keras

    export(chain(keras), tmp_path / "saved")
    command = [
        sys.executable,
        "-m",
        "syncbn_convert",
        f"{tmp_path / 'saved'}/",
        "--momentum",
        "0.9",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "equals the framework's predictions" in " ".join(done.stdout.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "saved.sync.onnx"]
