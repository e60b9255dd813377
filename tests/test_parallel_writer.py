from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ModelFileError
from syncbn_convert.files import parallel_writer, scaled_tensor
from syncbn_convert.files.parallel_writer import write_tensors
from syncbn_convert.passes.fusion.scaled import along, scaled

ROWS, COLUMNS = 301, 97


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (parallel_writer, scaled_tensor):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(parallel_writer, "_TASK_BYTES", 7000)
    monkeypatch.setattr(parallel_writer, "_CACHED_BYTES", 20_000)


def _outside(values: np.ndarray, folder: Path, name: str) -> ir.ExternalTensor:
    (folder / name).write_bytes(b"before" + values.tobytes() + b"behind")
    dtype, shape = ir.DataType.from_numpy(values.dtype), ir.Shape(values.shape)
    return ir.ExternalTensor(name, 6, values.nbytes, dtype, shape=shape, name=name, base_dir=folder)


def _values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def test_tensors_stand_one_behind_the_other(tmp_path: Path) -> None:
    arrays = [_values(seed) for seed in range(4)]
    factor = along(np.random.default_rng(9).uniform(0.5, 2.0, COLUMNS), 1, 2)
    product = (arrays[2].astype(np.float64) * factor).astype(np.float32)
    tensors = [
        ir.Tensor(arrays[0], name="inside"),
        _outside(arrays[1], tmp_path, "copied"),
        scaled(_outside(arrays[2], tmp_path, "scaled"), factor, 1),
        scaled(ir.Tensor(arrays[3], name="twice"), along(np.full(ROWS, 2.0), 0, 2), 0),
        ir.Tensor(np.zeros((0, 3), np.float32), name="empty"),
    ]
    expected = [arrays[0], arrays[1], product, 2 * arrays[3], np.zeros((0, 3), np.float32)]
    stored = write_tensors(tensors, tmp_path / "weights.data")
    content = (tmp_path / "weights.data").read_bytes()
    assert content == b"".join(array.tobytes() for array in expected)
    for tensor, array in zip(stored, expected, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_values_of_less_than_a_byte_are_copied_as_they_are(tmp_path: Path) -> None:
    content = np.arange(200, dtype=np.uint8).tobytes()
    (tmp_path / "w").write_bytes(content)
    tensor = ir.ExternalTensor(
        "w", 0, 200, ir.DataType.UINT4, shape=ir.Shape([400]), name="w", base_dir=tmp_path
    )
    write_tensors([tensor], tmp_path / "weights.data")
    assert (tmp_path / "weights.data").read_bytes() == content


@pytest.mark.parametrize("factor", [None, 2.0])
def test_a_file_that_became_shorter(tmp_path: Path, factor: float | None) -> None:
    tensor: ir.TensorProtocol = _outside(_values(0), tmp_path, "w")
    if factor is not None:
        tensor = scaled(tensor, np.full((1, 1), factor), 1)
    (tmp_path / "w").write_bytes(bytes(5000))
    with pytest.raises(ModelFileError, match="ends within tensor 'w'"):
        write_tensors([tensor], tmp_path / "weights.data")


def test_disk_full() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_tensors([ir.Tensor(_values(0), name="w")], Path("/dev/full"))


def test_disk_that_has_no_room_is_found_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _start: int, nbytes: int) -> None:
        assert nbytes == ROWS * COLUMNS * 4
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(parallel_writer, "_run", None)
    with pytest.raises(OSError, match="No space left"):
        write_tensors([ir.Tensor(_values(0), name="w")], tmp_path / "weights.data")


@pytest.mark.parametrize("lacking", ["file system", "system"])
def test_where_room_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    def refuse(*_arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for name in ("posix_fallocate", "posix_fadvise"):
        if lacking == "system":
            monkeypatch.delattr(os, name)
        else:
            monkeypatch.setattr(os, name, refuse)
    write_tensors([ir.Tensor(_values(0), name="w")], tmp_path / "weights.data")
    assert (tmp_path / "weights.data").read_bytes() == _values(0).tobytes()


def test_calls_that_write_a_part() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:313])

    target = Slow()
    parallel_writer._write(target, memoryview(bytes(range(250)) * 5))  # type: ignore[arg-type]
    assert target.getvalue() == bytes(range(250)) * 5
