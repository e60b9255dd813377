from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import onnx
import pytest

from syncbn_convert.errors import ModelFileError, UsageError
from syncbn_convert.files.data_names import data_file
from syncbn_convert.files.locked_folder import LockedFolder
from syncbn_convert.files.staging import StagedOutput, default_output, stage_output


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _write(staged: StagedOutput, model: bytes, data: bytes | None = None) -> None:
    staged.path.write_bytes(model)
    if data is not None:
        staged.data.write_bytes(data)


def test_commit_moves_model_and_data(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    with stage_output(output) as staged:
        assert staged.path.name == "model.onnx"
        assert staged.path.parents[2] == tmp_path
        assert staged.path.parents[1].name.startswith(".")
        _write(staged, b"model", b"data")
        assert not output.exists()
        staged.commit()
        assert _content(staged.path.parent) == {}
    assert _content(tmp_path) == {"model.onnx": b"model", "model.onnx.data": b"data"}


def test_relative_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with stage_output(Path("model.onnx")) as staged:
        _write(staged, b"model")
        staged.commit()
    assert _content(tmp_path) == {"model.onnx": b"model"}


def test_nothing_appears_without_commit(tmp_path: Path) -> None:
    with stage_output(tmp_path / "model.onnx") as staged:
        _write(staged, b"model", b"data")
    assert _content(tmp_path) == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(b"old")

    def fail() -> None:
        with stage_output(output, force=True) as staged:
            _write(staged, b"model", b"data")
            raise error

    with pytest.raises(error):
        fail()
    assert _content(tmp_path) == {"model.onnx": b"old"}


def _refused(
    error: type[ModelFileError | UsageError],
    output: Path,
    *,
    inputs: tuple[Path, ...] = (),
    force: bool = False,
) -> str:
    with pytest.raises(error) as caught, stage_output(output, inputs=inputs, force=force):
        pytest.fail("work began")
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("existing", ["model.onnx", "model.onnx.data"])
def test_existing_output_needs_force(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_bytes(b"old")
    message = _refused(UsageError, tmp_path / "model.onnx")
    assert message == f"{tmp_path / existing}: exists; pass --force to replace it"
    assert _content(tmp_path) == {existing: b"old"}


def test_dangling_link_as_output_needs_force(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("nowhere")
    assert "exists" in _refused(UsageError, tmp_path / "model.onnx")


def test_output_that_is_an_input_needs_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    model.write_bytes(b"old")
    link.symlink_to(model)
    monkeypatch.chdir(tmp_path)
    for output, source in [(model, model), (link, model), (Path("model.onnx"), model)]:
        other = tmp_path / "missing.npz"
        message = _refused(UsageError, output, inputs=(other, source))
        assert message == f"{output}: is the input itself; pass --force to replace it"


def test_folder_must_exist(tmp_path: Path) -> None:
    message = _refused(ModelFileError, tmp_path / "missing" / "model.onnx")
    assert message.startswith(f"{tmp_path / 'missing' / 'model.onnx'}: cannot be written: ")
    assert message.endswith("choose a folder that exists and is writable")


def test_folder_must_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    assert "cannot be written" in _refused(ModelFileError, tmp_path / "file" / "model.onnx")
    assert _content(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("folder", ["model.onnx", "model.onnx.data"])
def test_output_must_not_be_a_folder(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    message = _refused(ModelFileError, tmp_path / "model.onnx", force=True)
    assert message.startswith(f"{tmp_path / folder}: is a folder;")


def test_force_replaces_model_and_data(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(b"old")
    data_file(output).write_bytes(b"old data")
    with stage_output(output, inputs=[output], force=True) as staged:
        _write(staged, b"new", b"new data")
        staged.commit()
    assert _content(tmp_path) == {"model.onnx": b"new", "model.onnx.data": b"new data"}


def test_stale_data_of_the_replaced_model_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(_model_with_data_in(data_file(output).name))
    data_file(output).write_bytes(b"old data")
    with stage_output(output, force=True) as staged:
        _write(staged, b"new")
        staged.commit()
    assert _content(tmp_path) == {"model.onnx": b"new"}


def test_the_replaced_model_is_whole_until_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and model cannot be moved at once, so the new data has another name."""
    output = tmp_path / "model.onnx"
    names = ["model.onnx.1.data", "model.onnx.2.data"]
    old, old_data = _model_with_data_in("model.onnx.data"), b"old data"
    output.write_bytes(old)
    data_file(output).write_bytes(old_data)
    replace = os.replace
    for name in names:
        new, new_data = _model_with_data_in(name), name.encode()

        used = next(path.name for path in tmp_path.iterdir() if path.name.endswith(".data"))
        kept = {"model.onnx": old, used: old_data}

        def checked(source: Path, target: Path, kept: dict[str, bytes] = kept) -> None:
            assert kept.items() <= {p.name: p.read_bytes() for p in _files(tmp_path)}.items()
            replace(source, target)

        monkeypatch.setattr(os, "replace", checked)
        with stage_output(output, force=True) as staged:
            _write(staged, new, new_data)
            staged.commit()
        assert _content(tmp_path) == {"model.onnx": new, name: new_data}
        old, old_data = new, new_data


def test_data_of_another_model_stays(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(_model_with_data_in("elsewhere.bin"))
    data_file(output).write_bytes(b"of another model")
    with stage_output(output, force=True) as staged:
        _write(staged, b"new")
        staged.commit()
    assert data_file(output).read_bytes() == b"of another model"


def test_devices_are_no_outputs() -> None:
    with (
        pytest.raises(ModelFileError, match="is a device or pipe"),
        stage_output(Path("/dev/null"), force=True),
    ):
        pass


def _model_with_data_in(location: str, place: str = "initializer") -> bytes:
    model = onnx.ModelProto()
    if place == "initializer":
        tensor = model.graph.initializer.add()
    elif place == "attribute":
        tensor = model.graph.node.add().attribute.add().t
    elif place == "body":
        tensor = model.graph.node.add().attribute.add().g.initializer.add()
    else:
        tensor = model.functions.add().node.add().attribute.add().tensors.add()
    tensor.name, tensor.data_location = "w", onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    content: bytes = model.SerializeToString()
    return content


def test_data_without_a_replaced_model_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    data_file(output).write_bytes(b"of someone else")
    with stage_output(output, force=True) as staged:
        _write(staged, b"new")
        staged.commit()
    assert _content(tmp_path) == {"model.onnx": b"new", "model.onnx.data": b"of someone else"}


def test_weights_are_moved_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model.onnx"
    moved = []
    replace = os.replace

    def recorded(source: Path, target: Path) -> None:
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    with stage_output(output) as staged:
        _write(staged, b"model", b"data")
        staged.commit()
    assert moved == [data_file(output), output]


def test_failed_move_is_a_model_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model.onnx"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", descriptor)

    monkeypatch.setattr(os, "fsync", full)

    def fail() -> None:
        with stage_output(output) as staged:
            _write(staged, b"model", b"data")
            staged.commit()

    with pytest.raises(ModelFileError, match="No space left on device") as caught:
        fail()
    assert str(output) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _content(tmp_path) == {}


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("a/model.onnx", "sync", "a/model.sync.onnx"),
        ("model.sync.onnx", "deploy", "model.deploy.onnx"),
        ("model.sync.onnx", "sync", "model.sync.onnx"),
        ("model.deploy.onnx", "fused", "model.fused.onnx"),
        ("net.v1.keras", "sync", "net.v1.sync.onnx"),
        ("net.H5", "sync", "net.sync.onnx"),
        ("export.v1", "sync", "export.v1.sync.onnx"),
    ],
)
def test_default_output(
    source: str, kind: Literal["sync", "deploy", "fused"], expected: str
) -> None:
    assert default_output(Path(source), kind) == Path(expected)


def test_default_output_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export").mkdir()
    monkeypatch.chdir(tmp_path / "export")
    assert default_output(Path(), "sync") == tmp_path / "export.sync.onnx"


def test_only_one_process_writes_an_output(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    with stage_output(output):
        message = _refused(UsageError, output, force=True)
        assert message == (
            f"{output}: another process is writing it; wait for that, or choose another output"
        )
        with stage_output(tmp_path / "other.onnx"):
            pass
    with stage_output(output):
        pass
    assert _content(tmp_path) == {}


def test_an_output_that_appears_meanwhile_needs_force(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"

    def commit() -> None:
        with stage_output(output) as staged:
            _write(staged, b"new")
            output.write_bytes(b"of someone else")
            staged.commit()

    with pytest.raises(UsageError, match="exists; pass --force"):
        commit()
    assert _content(tmp_path) == {"model.onnx": b"of someone else"}


class _Killed(BaseException):
    """Ends a process so that nothing of it runs any more."""


@pytest.mark.parametrize("moves", [0, 1, 2])
@pytest.mark.parametrize("place", ["initializer", "attribute", "body", "function"])
def test_a_kill_leaves_old_with_old_or_new_with_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, place: str
) -> None:
    output = tmp_path / "model.onnx"
    with stage_output(output) as staged:
        _write(staged, _model_with_data_in("model.onnx.data", place), b"old")
        staged.commit()
    replace = os.replace
    done: list[Path] = []

    def counted(source: Path, target: Path) -> None:
        if len(done) == moves:
            raise _Killed
        done.append(target)
        replace(source, target)

    def killed(path: Path, missing_ok: bool = False) -> None:
        del path, missing_ok
        raise _Killed

    monkeypatch.setattr(os, "replace", counted)
    monkeypatch.setattr(Path, "unlink", killed)
    monkeypatch.setattr(LockedFolder, "remove", lambda folder: os.close(folder._descriptor))

    def commit() -> None:
        with stage_output(output, force=True) as staged:
            assert staged.data.name == "model.onnx.1.data"
            _write(staged, _model_with_data_in(staged.data.name, place), b"new")
            staged.commit()

    with pytest.raises(_Killed):
        commit()
    monkeypatch.undo()
    new = moves == 2
    name = "model.onnx.1.data" if new else "model.onnx.data"
    whole = {"model.onnx": _model_with_data_in(name, place), name: b"new" if new else b"old"}
    assert whole.items() <= {p.name: p.read_bytes() for p in _files(tmp_path)}.items()
    with stage_output(output, force=True):
        assert {p.name: p.read_bytes() for p in _files(tmp_path)} == whole
    assert _content(tmp_path) == whole


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.onnx", tmp_path / "elsewhere" / "model.onnx"
    link.symlink_to(target)
    with stage_output(link, force=True) as staged:
        _write(staged, b"model", b"data")
        staged.commit()
    assert link.is_symlink()
    assert link.read_bytes() == target.read_bytes() == b"model"
    assert (target.parent / "model.onnx.data").read_bytes() == b"data"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link.onnx"]


def test_links_in_a_circle_are_no_outputs(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "in a circle" in _refused(ModelFileError, tmp_path / "a", force=True)


def test_a_long_name(tmp_path: Path) -> None:
    output = tmp_path / ("m" * 245 + ".onnx")
    with stage_output(output) as staged:
        staged.path.write_bytes(b"model")
        staged.commit()
    assert _content(tmp_path) == {output.name: b"model"}
