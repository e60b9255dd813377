"""Files with layers that Keras does not have, and files that are broken."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import syncbn_convert
from syncbn_convert.errors import ModelFileError, UsageError

from .models import chain

pytestmark = pytest.mark.filterwarnings("ignore")

CLI = [sys.executable, "-m", "syncbn_convert"]
MODULE = """
import keras


class Doubled(keras.layers.Layer):
    def call(self, x):
        return x * 2


def model():
    return keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.BatchNormalization(name="norm"), Doubled()]
    )
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a module and a model that needs it."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "own_layers.py").write_text(MODULE)
    program = "import own_layers; own_layers.model().save('model.keras')"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return that folder, which is the working directory."""
    monkeypatch.chdir(saved)
    return saved


def test_module_of_the_working_directory_is_taken(folder: Path) -> None:
    command = [*CLI, "inspect", "model.keras"]
    without = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.count("\n") == 1
    assert "layer 'doubled' is of class 'own_layers.Doubled'" in without.stderr
    assert "--custom-objects" in without.stderr
    command += ["--custom-objects", "own_layers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "norm" in done.stdout
    assert [path.name for path in folder.glob("*.onnx")] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "model.keras", "--dry-run", "--report", "page.html"],
        ["step", "model.keras", "--loss", "mse", "--labels", "wanted", "-o", "step"],
    ],
    ids=["page", "step"],
)
@pytest.mark.usefixtures("folder")
def test_every_reading_of_a_model_finds_them(arguments: list[str], tmp_path: Path) -> None:
    target = tmp_path / arguments[-1]
    command = [*CLI, *arguments[:-1], str(target), "--custom-objects", "own_layers", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.exists()


def test_objects_are_given_in_python(folder: Path) -> None:
    import keras

    class Other(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: object) -> object:
            return x

    path = folder / "model.keras"
    with syncbn_convert.custom_objects({"Doubled": Other}):
        assert [node.name for node in syncbn_convert.inspect(path).nodes] == ["norm"]
    with pytest.raises(ModelFileError, match="class 'own_layers\\.Doubled'"):
        syncbn_convert.inspect(path)


def test_module_that_cannot_be_imported_is_one_line(folder: Path) -> None:
    with (
        syncbn_convert.custom_objects("no_such.module"),
        pytest.raises(UsageError, match=r"'no_such\.module': cannot be imported: No module named"),
    ):
        syncbn_convert.inspect(folder / "model.keras")


def test_archive_without_weights_is_one_line(tmp_path: Path) -> None:
    import keras

    whole, part = tmp_path / "whole.keras", tmp_path / "part.keras"
    chain(keras).save(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(part, "w") as target:
        for name in ("metadata.json", "config.json"):
            target.writestr(name, source.read(name))
    with pytest.raises(ModelFileError, match=r"part\.keras: cannot be read by Keras 3"):
        syncbn_convert.inspect(part)


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.h5", "cannot be read by Keras"), ("model.keras", r"not a \.keras file")],
)
def test_file_of_something_else_is_one_line(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=f"{name}: {words}"):
        syncbn_convert.inspect(tmp_path / name)


def test_noise_of_tensorflow_is_heard_only_when_asked_for(folder: Path) -> None:
    flags = ["--custom-objects", "own_layers", "--dry-run", "--quiet", "--verbose"]
    command = [*CLI, "convert", str(folder / "model.keras"), *flags]
    loud = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "oneDNN" in loud.stderr
    assert loud.stdout == ""
