from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from syncbn_convert.errors import ModelFileError, SyncBNError
from syncbn_convert.files.model_file import load_model, map_model, to_proto, write_model
from syncbn_convert.files.tensors import InsideTensor
from syncbn_convert.files.wire_format import WITHHELD_BYTES, read_without_weights

SIZE = 64


def _model(dtype: str = "float32") -> onnx.ModelProto:
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(dtype)
    weight = numpy_helper.from_array(values, "w")
    weight.doc_string = "tämä"
    weight.metadata_props.add(key="made by", value="hand")
    element = helper.np_dtype_to_tensor_dtype(values.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", element, ["n", SIZE])],
        [helper.make_tensor_value_info("y", element, ["n", SIZE])],
        [weight, numpy_helper.from_array(values[0], "b")],
        doc_string="about the graph",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.metadata_props.add(key="k", value="v")
    return model


def _save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _outcome(read: Callable[[Path], ir.Model], path: Path) -> str:
    try:
        return str(to_proto(read(path)))
    except SyncBNError as error:
        return str(error)
    except ir.serde.SerdeError as error:
        return type(error).__name__


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_weights_stay_in_the_file_and_come_back(tmp_path: Path, dtype: str) -> None:
    path = _save(tmp_path, _model(dtype))
    assert len(read_without_weights(path)) < path.stat().st_size - SIZE * SIZE
    mapped = map_model(path)
    assert isinstance(mapped.graph.initializers["w"].const_value, InsideTensor)
    assert to_proto(mapped) == to_proto(load_model(path))
    written = tmp_path / "written.onnx"
    assert write_model(mapped, written) == [written]
    again = onnx.load(written)
    del again.graph.value_info[:]  # onnx_ir adds the types of initializers
    assert again == _model(dtype)


def test_float_data_becomes_raw(tmp_path: Path) -> None:
    model = _model()
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight)
    weight.ClearField("raw_data")
    weight.float_data.extend(values.ravel())
    written = tmp_path / "written.onnx"
    write_model(map_model(_save(tmp_path, model)), written)
    np.testing.assert_array_equal(
        numpy_helper.to_array(onnx.load(written).graph.initializer[0]), values
    )


def test_small_weights_come_along(tmp_path: Path) -> None:
    model = _model()
    assert len(model.graph.initializer[1].raw_data) < WITHHELD_BYTES
    mapped = map_model(_save(tmp_path, model))
    assert isinstance(mapped.graph.initializers["b"].const_value, ir.TensorProtoTensor)


def test_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = _save(tmp_path / "sub", _model())
    os.link(path, tmp_path / "hard.onnx")
    (tmp_path / "soft.onnx").symlink_to(path)
    for name in ("hard.onnx", "soft.onnx"):
        assert to_proto(map_model(tmp_path / name)) == to_proto(load_model(path))


def test_wrong_sizes_are_named_alike(tmp_path: Path) -> None:
    model = _model()
    model.graph.initializer[0].dims[0] -= 1
    path = _save(tmp_path, model)
    expected = "tensor 'w': holds 16384 bytes, but its dims and type need 16128"
    for read in (load_model, map_model):
        with pytest.raises(ModelFileError, match=expected):
            read(path)


def test_damaged_files_are_judged_as_by_protobuf(tmp_path: Path) -> None:
    path = _save(tmp_path, _model())
    whole = path.read_bytes()
    generator = random.Random(0)
    ends = [*range(120), *range(len(whole) - 400, len(whole))]
    for length in [*range(0, len(whole), 997), *ends]:
        path.write_bytes(whole[:length])
        assert _outcome(map_model, path) == _outcome(load_model, path), length
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[generator.choice(ends)] = generator.randrange(256)
        path.write_bytes(damaged)
        assert _outcome(map_model, path) == _outcome(load_model, path)


@pytest.mark.parametrize("external", [False, True])
def test_disk_full(tmp_path: Path, external: bool) -> None:
    model = load_model(_save(tmp_path, _model()))

    class Full(ir.Tensor):  # type: ignore[type-arg]
        def numpy(self) -> np.ndarray:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model.graph.initializers["w"].const_value = Full(np.zeros((SIZE, SIZE), np.float32), name="w")
    with pytest.raises(ModelFileError, match=r"No space left on device; free disk space"):
        write_model(model, tmp_path / "out.onnx", save_as_external_data=external)


def test_no_weight_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: object) -> None:
        raise AssertionError("a weight was read whole")

    monkeypatch.setattr(ir.ExternalTensor, "numpy", fail)
    path = _save(tmp_path, _model())
    write_model(map_model(path), tmp_path / "written.onnx")
