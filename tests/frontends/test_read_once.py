"""A model of Keras is read once by a command, whatever the command needs it for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from syncbn_convert.cli.main import main
from syncbn_convert.keras import sources

from .models import predict, random_normalization

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def keras_file(tmp_path: Path) -> Path:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(x, layers.Dense(2, name="dense")(layers.Flatten()(y)))
    random_normalization(model)
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    image = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    np.savez(path, image=image, label=np.zeros((16, 2), np.float32))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were read through TensorFlow."""
    seen: list[Any] = []
    read = sources.read

    def counted(source: Any) -> sources.Imported:
        seen.append(source)
        return read(source)

    monkeypatch.setattr(sources, "read", counted)
    return seen


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert"],
        ["fuse"],
        ["unfuse", "--data", "data.npz", "--include", "dense"],
        ["calibrate", "--data", "data.npz"],
        ["train", "--data", "data.npz", "--labels", "label", "--loss", "mse"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_with_verification_and_page(
    arguments: list[str],
    keras_file: Path,
    data: Path,
    reads: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data.parent)
    command, *flags = arguments
    if command == "train":
        flags += ["--learning-rate", "0.01"]
    target = ["-o", "out.onnx", "--report", "page.html", "--json"]
    assert main([command, keras_file.name, *flags, *target]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert report["verified"] is True
    assert reads == [Path(keras_file.name)]
    assert "<h1>model.keras</h1>" in Path("page.html").read_text()


def test_unfused_keras_file_computes_what_keras_predicts(
    keras_file: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = data.with_name("unfused.onnx")
    flags = ["--data", str(data), "--include", "dense", "-o", str(output), "-q"]
    assert main(["unfuse", str(keras_file), *flags]) == 0, capsys.readouterr().err
    import keras

    with np.load(data) as arrays:
        image = arrays["image"]
    wanted = np.asarray(keras.models.load_model(keras_file).predict(image, verbose=0))
    from syncbn_convert.files.model_file import load_model

    found = predict(load_model(output), image)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    counts = [node.op_type for node in onnx.load(output).graph.node]
    assert counts.count("BatchNormalization") == 2
