from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from syncbn_convert.errors import ConversionError, ModelFileError, SyncBNError
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import (
    as_model,
    checked,
    load_model,
    to_proto,
    write_model,
)
from syncbn_convert.files.staging import stage_output
from syncbn_convert.files.tensors import tensors_of
from syncbn_convert.form import training_info
from syncbn_convert.keras import reading

SIZE = 32
BYTES = 4 * SIZE * SIZE
Edit = Callable[[onnx.ModelProto], object]


def _weight(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE), dtype=np.float32)


def _matmul(name: str, seed: int, x: str, y: str) -> list[onnx.NodeProto]:
    value = numpy_helper.from_array(_weight(seed))
    return [
        helper.make_node("Constant", [], [name], value=value),
        helper.make_node("MatMul", [x, name], [y]),
    ]


def _branch(index: int) -> onnx.GraphProto:
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["h", f"bw{index}"], [f"bm{index}"]),
            *_matmul(f"bc{index}", 20 + index, f"bm{index}", f"b{index}"),
        ],
        f"branch{index}",
        [],
        [helper.make_tensor_value_info(f"b{index}", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(_weight(10 + index), f"bw{index}")],
    )


def _model() -> onnx.ModelProto:
    """A model with tensors in every place: initializers, Constant, If branches, a function."""
    opset = helper.make_opsetid("", 17)
    function = helper.make_function(
        "local", "Double", ["a"], ["b"], _matmul("w", 3, "a", "b"), [opset]
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "big"], ["m"], name="first"),
            helper.make_node("Add", ["m", "small"], ["s"]),
            *_matmul("c", 2, "s", "k"),
            helper.make_node("Double", ["k"], ["h"], domain="local"),
            helper.make_node("If", ["flag"], ["y"], then_branch=_branch(0), else_branch=_branch(1)),
        ],
        "everywhere",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])],
        [
            numpy_helper.from_array(_weight(1), "big"),
            numpy_helper.from_array(np.arange(SIZE, dtype=np.float32), "small"),
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[opset, helper.make_opsetid("local", 1)],
        functions=[function],
        ir_version=9,
    )
    model.training_info.add().update_binding.add(key="small", value="y")
    return model


def _save(folder: Path, model: onnx.ModelProto | None = None, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes((model or _model()).SerializeToString())
    return path


def _save_external(folder: Path) -> Path:
    """Save the model with every tensor in `weights.bin`, however small and wherever it is."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(
        _model(),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    return path


def _run(path: Path) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, SIZE), dtype=np.float32)
    return [session.run(None, {"x": x, "flag": np.array(flag)})[0] for flag in (True, False)]


def _all_tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return list(tensors_of(model))


def _externals(model: ir.Model) -> list[ir.ExternalTensor]:
    return [tensor for tensor in _all_tensors(model) if isinstance(tensor, ir.ExternalTensor)]


def _serialized(proto: onnx.ModelProto) -> bytes:
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _bytes(model: ir.Model) -> bytes:
    return _serialized(to_proto(model))


def _without_value_info(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the types of initializers, which onnx_ir adds."""
    del proto.graph.value_info[:]
    for attribute in proto.graph.node[-1].attribute:
        del attribute.g.value_info[:]
    return proto


def _load_error(path: Path) -> str:
    return _error(ModelFileError, lambda: load_model(path), str(path))


def _error(kind: type[SyncBNError], call: Callable[[], object], names: str) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert names in message
    assert "; " in message
    return message


# Files that cannot be read


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in _load_error(tmp_path / "model.onnx")


def test_folder(tmp_path: Path) -> None:
    message = _error(ModelFileError, lambda: reading.read(tmp_path), str(tmp_path))
    assert "is a folder" in message


def test_path_below_a_file(tmp_path: Path) -> None:
    assert "cannot be read" in _load_error(_save(tmp_path) / "model.onnx")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(onnx, "load", refuse)
    assert "Permission denied" in _load_error(path)


def test_link_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.symlink_to(path)
    assert "cannot be read" in _load_error(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    assert "not an ONNX model" in _load_error(path)


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for seed in range(50):
        path.write_bytes(random.Random(seed).randbytes(1 + 40 * seed))
        assert "not an ONNX model" in _load_error(path)


def test_truncated_file(tmp_path: Path) -> None:
    path = _save(tmp_path)
    whole = path.read_bytes()
    after_graph = whole.index(_model().graph.SerializeToString()) + _model().graph.ByteSize()
    for length in [*range(0, after_graph, 997), after_graph - 1, after_graph]:
        path.write_bytes(whole[:length])
        assert "not an ONNX model" in _load_error(path)


@pytest.mark.parametrize("field", ["ir_version", "graph", "opset_import"])
def test_missing_field(tmp_path: Path, field: str) -> None:
    model = _model()
    model.ClearField(field)
    message = _load_error(_save(tmp_path, model))
    assert f"not an ONNX model, or cut off: it has no {field}" in message


# Models that the checker or we refuse


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(
        dims=[SIZE],
        values=helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0]),
        indices=helper.make_tensor("indices", TensorProto.INT64, [1], [2]),
    )


def _external_training_info(model: onnx.ModelProto) -> None:
    tensor = model.training_info[0].initialization.initializer.add(
        name="start", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="model.onnx")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: setattr(m, "ir_version", 99), "ir_version 99"),
        (lambda m: m.graph.node[0].ClearField("op_type"), "'op_type' of 'node' is required"),
        (lambda m: m.graph.node[0].input.append("big"), "Node(first) with schema"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "first"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "big"),
        (lambda m: m.graph.initializer[0].dims.append(2), "tensor 'big': holds 4096 bytes"),
        (lambda m: m.graph.initializer[0].dims.pop(), "tensor 'big': holds 4096 bytes"),
        (
            lambda m: setattr(m.graph.initializer[0], "data_type", 77),
            "tensor 'big': cannot be read",
        ),
        (lambda m: m.functions[0].node[0].attribute[0].t.dims.pop(), "tensor 'w': holds 4096"),
        (_sparse, "tensor 'sparse': sparse tensors are not supported"),
        (_external_training_info, "tensor 'start' of training_info"),
    ],
)
def test_invalid_model(tmp_path: Path, edit: Edit, words: str) -> None:
    model = _model()
    edit(model)
    assert words in _load_error(_save(tmp_path, model))


@pytest.mark.parametrize("text", [b"first", b"everywhere", b"small", b"Double"])
def test_text_that_is_not_utf8(tmp_path: Path, text: bytes) -> None:
    path = _save(tmp_path)
    path.write_bytes(path.read_bytes().replace(text, b"\xff" * len(text)))
    assert "not a valid ONNX model" in _load_error(path)


def test_too_few_values(tmp_path: Path) -> None:
    model = _model()
    model.graph.initializer[1].CopyFrom(helper.make_tensor("small", TensorProto.FLOAT, [1], [1.0]))
    model.graph.initializer[1].dims[0] = SIZE
    assert "small" in _load_error(_save(tmp_path, model))


def _batch_norm(opset: int, ir_version: int, **attributes: Any) -> onnx.ModelProto:
    names = ["scale", "B", "mean", "var"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in names]
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *names], ["y"], name="bn", **attributes)],
        "bn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4]), *values],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor(name, TensorProto.FLOAT, [3], [1.0] * 3) for name in names],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


@pytest.mark.parametrize(
    "model",
    [
        _batch_norm(1, 3, is_test=1, consumed_inputs=[0, 0, 0, 1, 1]),
        _batch_norm(6, 3, is_test=1),
        _batch_norm(9, 4),
        _batch_norm(15, 8, training_mode=1),
    ],
)
def test_old_and_training_models_are_read(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert to_proto(load_model(_save(tmp_path, model))) == model
    assert to_proto(as_model(model)) == model


# External data


def test_external_data_is_found_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save_external(tmp_path / "source")
    monkeypatch.chdir(path.parent)
    model = load_model("model.onnx")
    monkeypatch.chdir(tmp_path)
    tensors = _externals(model)
    assert len(tensors) == len(_all_tensors(model)) == 8
    assert {tensor.base_dir for tensor in tensors} == {path.parent}
    assert all(tensor.raw is None for tensor in tensors)
    np.testing.assert_array_equal(model.graph.initializers["big"].const_value, _weight(1))


def _with_external_big(folder: Path, **entries: str) -> Path:
    model = _model()
    (folder / "weights.bin").write_bytes(_weight(1).tobytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "length": str(BYTES), **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return _save(folder, model)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "missing.bin"}, "'missing.bin' is missing"),
        ({"location": ""}, "is missing"),
        ({"location": "."}, "is missing"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": os.path.abspath("weights.bin")}, "outside the model's folder"),
        ({"offset": "4"}, f"at bytes 4 to {BYTES + 4} of 'weights.bin', which has {BYTES}"),
        ({"offset": "-4"}, "offset must be non-negative, got -4"),
        ({"length": str(BYTES - 4)}, f"length {BYTES - 4}, but its dims and type need {BYTES}"),
        ({"length": "many"}, "cannot be read"),
    ],
)
def test_bad_external_data(tmp_path: Path, entries: dict[str, str], words: str) -> None:
    message = _load_error(_with_external_big(tmp_path, **entries))
    assert words in message
    assert "tensor 'big'" in message


def test_external_data_cut_off(tmp_path: Path) -> None:
    path = _with_external_big(tmp_path)
    load_model(path)
    os.truncate(tmp_path / "weights.bin", BYTES - 1)
    assert f"which has {BYTES - 1}" in _load_error(path)


def test_missing_external_data_of_a_function_names_its_node(tmp_path: Path) -> None:
    model = _model()
    tensor = model.functions[0].node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="missing.bin")
    assert "tensor 'w'" in _load_error(_save(tmp_path, model))


def test_links_as_external_data(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    path = _with_external_big(folder)
    data = folder / "weights.bin"
    data.rename(outside / "weights.bin")
    data.symlink_to(outside / "weights.bin")
    assert "outside the model's folder" in _load_error(path)
    data.unlink()
    os.link(outside / "weights.bin", data)
    assert "is a hard link" in _load_error(path)
    data.unlink()
    (outside / "weights.bin").rename(folder / "other.bin")
    data.symlink_to("other.bin")
    os.link(folder / "other.bin", outside / "another.bin")
    assert "is a hard link" in _load_error(path)
    (outside / "another.bin").unlink()
    np.testing.assert_array_equal(
        load_model(path).graph.initializers["big"].const_value, _weight(1)
    )
    data.unlink()
    data.symlink_to(".")
    assert "is missing" in _load_error(path)


def _cached(folder: Path, blobs: Path) -> Path:
    """A model as the cache of a model hub has it: links to blobs."""
    snapshot = folder / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    _with_external_big(blobs).rename(blobs / "aa")
    (blobs / "weights.bin").rename(blobs / "bb")
    (snapshot / "model.onnx").symlink_to(blobs / "aa")
    (snapshot / "weights.bin").symlink_to(blobs / "bb")
    return snapshot / "model.onnx"


@pytest.mark.parametrize("load", [load_model, model_file.map_model])
def test_a_model_of_links_into_a_cache(tmp_path: Path, load: Callable[[Path], ir.Model]) -> None:
    path = _cached(tmp_path, tmp_path / "blobs")
    ort.InferenceSession(path)
    model = load(path)
    np.testing.assert_array_equal(model.graph.initializers["big"].const_value, _weight(1))
    write_model(model, tmp_path / "written.onnx")
    ort.InferenceSession(tmp_path / "written.onnx")


def test_links_out_of_a_cache(tmp_path: Path) -> None:
    path = _cached(tmp_path, tmp_path / "blobs")
    data = path.with_name("weights.bin")
    (tmp_path / "secret").write_bytes(_weight(1).tobytes())
    data.unlink()
    data.symlink_to(tmp_path / "secret")
    assert "outside the model's folder" in _load_error(path)
    data.unlink()
    data.symlink_to(tmp_path / "blobs")
    assert "is missing" in _load_error(path)


def test_external_data_below_a_linked_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "w.bin").write_bytes(_weight(1).tobytes())
    (folder / "sub").symlink_to(outside)
    path = _with_external_big(folder, location="sub/w.bin")
    assert "outside the model's folder" in _load_error(path)


def test_protobuf_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save_external(tmp_path / "source")
    proto = onnx.load(path, load_external_data=False)
    monkeypatch.chdir(tmp_path)
    message = _error(ModelFileError, lambda: as_model(proto), "model 'everywhere'")
    assert "load the model by its path" in message


def test_ir_model_without_its_data(tmp_path: Path) -> None:
    path = _save_external(tmp_path / "source")
    model = load_model(path)
    (path.parent / "weights.bin").unlink()
    assert "is missing" in _error(ModelFileError, lambda: as_model(model), "model 'everywhere'")


# Arguments and results


def test_training_info_travels(tmp_path: Path) -> None:
    model = load_model(_save(tmp_path))
    assert training_info.update_bindings(model) == {"small": "y"}
    assert training_info.update_bindings(as_model(model)) == {"small": "y"}
    [written] = write_model(as_model(_model()), tmp_path / "written.onnx")
    assert list(onnx.load(written).training_info) == list(_model().training_info)


def test_as_model_of_a_protobuf_is_independent() -> None:
    proto = _model()
    before = _serialized(proto)
    model = as_model(proto)
    assert _without_value_info(to_proto(model)) == proto
    _change(model)
    assert _serialized(proto) == before


def test_as_model_of_an_ir_model_is_independent(tmp_path: Path) -> None:
    for path in (_save(tmp_path), _save_external(tmp_path / "source")):
        original = load_model(path)
        original.meta["key"] = "value"
        before = _bytes(original)
        model = as_model(original)
        assert model.meta["key"] == "value"
        assert _bytes(model) == before
        _change(model)
        assert _bytes(original) == before
        assert training_info.update_bindings(original) == {"small": "y"}


def _change(model: ir.Model) -> None:
    """Make an initializer of a Constant, rename another, drop a node's name and the meta."""
    training_info.put(model, [])
    graph = model.graph
    constant = next(node for node in graph if node.op_type == "Constant")
    output = constant.outputs[0]
    weight = ir.Value(name="made_of_constant", const_value=constant.attributes["value"].as_tensor())
    graph.register_initializer(weight)
    output.replace_all_uses_with(weight)
    graph.remove(constant, safe=True)
    graph.initializers["big"].name = "renamed"
    graph[0].name = "changed"
    _bytes(model)


def test_as_model_shares_weights(tmp_path: Path) -> None:
    original = load_model(_save(tmp_path))
    weight = as_model(original).graph.initializers["big"].const_value
    assert weight is original.graph.initializers["big"].const_value


def test_as_model_refuses_an_invalid_protobuf() -> None:
    proto = _model()
    proto.graph.node[0].input[0] = "nowhere"
    assert "nowhere" in _error(ModelFileError, lambda: as_model(proto), "model 'everywhere'")
    message = _error(ModelFileError, lambda: as_model(onnx.ModelProto()), "model ''")
    assert "it has no ir_version" in message


def test_text_of_attribute_tensors_is_kept() -> None:
    proto = _model()
    proto.graph.node[2].attribute[0].t.metadata_props.add(key="made by", value="hand")
    model = as_model(as_model(proto))
    assert _without_value_info(to_proto(model)) == proto


def test_results_have_the_type_of_what_was_read(tmp_path: Path) -> None:
    path = _save(tmp_path)
    model = load_model(path)
    assert reading.read(_model()).like(model) == to_proto(model)
    for argument in (path, load_model(path)):
        model = load_model(path)
        assert reading.read(argument).like(model) is model


def test_to_proto_keeps_references(tmp_path: Path) -> None:
    path = _save_external(tmp_path)
    big = to_proto(load_model(path)).graph.initializer[0]
    assert big.data_location == TensorProto.EXTERNAL
    assert not big.raw_data


# Writing


def test_written_inside_one_file(tmp_path: Path) -> None:
    path = _save(tmp_path)
    target = tmp_path / "written.onnx"
    assert write_model(load_model(path), target) == [target]
    assert _without_value_info(onnx.load(target)) == _model()


@pytest.mark.parametrize("external", [False, True])
def test_same_model_same_bytes(tmp_path: Path, external: bool) -> None:
    path = _save_external(tmp_path / "source") if external else _save(tmp_path)
    content = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        files = write_model(load_model(path), folder / "model.onnx")
        content.append([file.read_bytes() for file in files])
        path = files[0]
    assert content[0] == content[1]


@pytest.mark.parametrize("external", [False, True])
def test_big_tensors_move_to_one_data_file(tmp_path: Path, external: bool) -> None:
    path = _save_external(tmp_path / "source") if external else _save(tmp_path, name="source.onnx")
    expected = _run(path)
    model = load_model(path)
    tensors, before = _all_tensors(model), _bytes(model)
    folder = tmp_path / "target"
    folder.mkdir()
    target = folder / "model.onnx"
    files = write_model(model, target, save_as_external_data=not external)
    assert files == [target, folder / "model.onnx.data"]
    assert sorted(folder.iterdir()) == files

    assert all(new is old for new, old in zip(_all_tensors(model), tensors, strict=True))
    assert _bytes(model) == before

    written = load_model(target)
    assert len(_externals(written)) == 7
    assert {tensor.location for tensor in _externals(written)} == {"model.onnx.data"}
    assert files[1].stat().st_size == 7 * BYTES
    assert isinstance(written.graph.initializers["small"].const_value, ir.TensorProtoTensor)
    for new, old in zip(_all_tensors(written), tensors, strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new.numpy(), old.numpy())
    if external:
        for file in path.parent.iterdir():
            file.unlink()
    np.testing.assert_array_equal(_run(target), expected)


def test_text_of_tensors_is_kept(tmp_path: Path) -> None:
    proto = _model()
    for tensor in proto.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
        tensor.metadata_props.add(key="made by", value=tensor.name)
    target = tmp_path / "model.onnx"
    write_model(as_model(proto), target, save_as_external_data=True)
    again = tmp_path / "again.onnx"
    write_model(load_model(target), again)
    for tensor in onnx.load(again).graph.initializer:
        assert tensor.doc_string == f"about {tensor.name}"
        assert [(p.key, p.value) for p in tensor.metadata_props] == [("made by", tensor.name)]


def test_nothing_to_move(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    assert write_model(as_model(_batch_norm(15, 8)), target, save_as_external_data=True) == [target]
    assert list(tmp_path.iterdir()) == [target]


def test_data_moves_out_of_a_model_too_big_for_protobuf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.onnx"
    total = 7 * BYTES + 4 * SIZE
    monkeypatch.setattr(model_file, "_MAX_INLINE_BYTES", total)
    assert len(write_model(as_model(_model()), target)) == 1
    monkeypatch.setattr(model_file, "_MAX_INLINE_BYTES", total - 1)
    assert len(write_model(as_model(_model()), target)) == 2


@pytest.mark.parametrize("external", [False, True])
def test_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    def full(*_: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = as_model(_model())
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "open", full)

    def write() -> None:
        with stage_output(tmp_path / "model.onnx") as staged:
            write_model(model, staged.path, save_as_external_data=external)

    assert "No space left on device" in _error(ModelFileError, write, "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_model_replaced_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(as_model(_model()), path, save_as_external_data=True)
    expected = _run(path)
    model = load_model(path)
    model.graph.initializers["big"].const_value = ir.tensor(_weight(99), name="big")
    with stage_output(path, inputs=[path], force=True) as staged:
        write_model(model, staged.path, data=staged.data)
        changed = _run(staged.path)
        staged.commit()
    assert not np.array_equal(changed, expected)
    np.testing.assert_array_equal(_run(path), changed)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.1.data"]


# The checker


def test_checked_accepts(tmp_path: Path) -> None:
    checked(as_model(_model()))
    path = _save_external(tmp_path)
    model = load_model(path)
    checked(model)
    assert len(_externals(model)) == 8


def test_checked_reads_small_external_shapes(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([-1, 4], dtype=np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
        [shape],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="s.bin", size_threshold=0)
    checked(load_model(path))


def test_checked_does_not_read_weights() -> None:
    def fail() -> ir.TensorProtocol:
        raise AssertionError("weights were read")

    model = as_model(_model())
    big = model.graph.initializers["big"]
    big.const_value = ir.LazyTensor(
        fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([SIZE, SIZE]), name="big"
    )
    checked(model)


def test_checked_refuses(tmp_path: Path) -> None:
    training = load_model(_save(tmp_path, _batch_norm(15, 8, training_mode=1)))
    assert "outputs" in _error(ConversionError, lambda: checked(training), "model 'bn'")
    model = as_model(_model())
    weight = model.graph.initializers["big"]
    weight.const_value = ir.tensor(np.zeros((SIZE + 1, SIZE), np.float32), name="big")
    assert "(33) vs (32)" in _error(ConversionError, lambda: checked(model), "model 'everywhere'")
