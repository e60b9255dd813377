"""Files of Keras and TensorFlow do not run their own code: each would leave a marker."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import syncbn_convert
from syncbn_convert.errors import ModelFileError

from .keras_attacks import ATTACKS, edit_archive, layer, saved

pytestmark = pytest.mark.filterwarnings("ignore")

WITHOUT_CODE = [name for name in ATTACKS if "HDF5" in name or "in Keras 3" in name]
"""What Keras 3 refuses, too, and what only reads other files."""
NESTED = "a module, nested"
"""Which the library at hand does not reach, but others may."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("evil_module", None)
    return tmp_path


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_runs_unasked(name: str, folder: Path) -> None:
    marker = folder / "marker"
    path = ATTACKS[name](folder, marker)
    with pytest.raises(ModelFileError) as caught:
        syncbn_convert.inspect(path)
    message = str(caught.value)
    assert str(path) in message
    assert ("--trust-model-code" in message) == ("HDF5" not in name)
    assert not marker.exists()
    assert "evil_module" not in sys.modules


@pytest.mark.sweep
@pytest.mark.parametrize(
    "name", [n for n in ATTACKS if n not in (*WITHOUT_CODE, NESTED, "a function in .h5")]
)
def test_attacks_are_real(name: str, folder: Path) -> None:
    marker = folder / "marker"
    path = ATTACKS[name](folder, marker)
    with syncbn_convert.trust_model_code(), contextlib.suppress(syncbn_convert.SyncBNError):
        syncbn_convert.convert_file(path, folder / "out.onnx")
    assert marker.exists()


def test_code_that_is_trusted_runs(folder: Path) -> None:
    marker = folder / "marker"
    path = ATTACKS["Lambda in .keras"](folder, marker)
    with syncbn_convert.trust_model_code():
        assert [node.name for node in syncbn_convert.inspect(path).nodes] == ["norm"]
    assert marker.exists()
    marker.unlink()
    with pytest.raises(ModelFileError, match="layer 'evil' is a Lambda"):
        syncbn_convert.inspect(path)


Edit = Callable[[dict[str, Any]], object]


def _vocabulary(config: dict[str, Any]) -> None:
    dense = layer(config, "dense")
    dense["class_name"] = "StringLookup"
    dense["config"] = {"name": "dense", "vocabulary": "/etc/passwd"}


def _initializer(config: dict[str, Any]) -> None:
    layer(config, "dense")["config"]["kernel_initializer"] = {
        "class_name": "Popen",
        "module": "subprocess",
        "config": {"args": "true"},
    }


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: layer(c, "dense").update(class_name="TFSMLayer"), "loads another SavedModel"),
        (lambda c: layer(c, "dense").update(class_name="Own", module="own"), "class 'own.Own'"),
        (lambda c: layer(c, "dense").update(class_name=7), "a class that is no name"),
        (lambda c: layer(c, "dense").update(class_name="TensorFlowOpLayer"), "the file spells out"),
        (_vocabulary, "reads the file '/etc/passwd'"),
        (_initializer, "class 'subprocess.Popen'"),
    ],
)
def test_what_a_configuration_names(library: str, edit: Edit, words: str, folder: Path) -> None:
    path = edit_archive(saved(library, folder / "model.keras"), edit)
    with pytest.raises(ModelFileError, match=words):
        syncbn_convert.inspect(path)
