from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import syncbn_convert
from syncbn_convert import UsageError
from tests.models import DIGITS


@pytest.mark.parametrize("external", [False, True])
def test_training_info_is_saved(external: bool, tmp_path: Path) -> None:
    form = syncbn_convert.convert(DIGITS, verify=False)
    path = syncbn_convert.save(form, tmp_path / "form.onnx", save_as_external_data=external)
    (entry,) = onnx.load(path).training_info
    assert len(entry.update_binding) == 10
    assert (tmp_path / "form.onnx.data").exists() == external
    written, _ = syncbn_convert.convert_file(DIGITS, tmp_path / "written.onnx", verify=False)
    assert written is not None
    assert external or written.read_bytes() == path.read_bytes()


def test_a_protobuf_is_saved_as_the_model_is(tmp_path: Path) -> None:
    form = syncbn_convert.convert(onnx.load(DIGITS), verify=False)
    path = syncbn_convert.save(form, str(tmp_path / "form.onnx"))
    assert onnx.load(path).training_info == form.training_info  # type: ignore[union-attr]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    model = onnx.load(DIGITS)
    with pytest.raises(UsageError, match="exists"):
        syncbn_convert.save(model, path)
    assert path.read_text() == "mine"
    syncbn_convert.save(model, path, force=True)
    assert [n.name for n in onnx.load(path).graph.node] == [n.name for n in model.graph.node]
