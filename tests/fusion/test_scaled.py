"""Weights computed block by block are those computed whole, in float64 and rounded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ModelFileError
from syncbn_convert.files import scaled_tensor
from syncbn_convert.files.scaled_tensor import block_bounds, wide_blocks
from syncbn_convert.passes.fusion import scaled as scaling
from syncbn_convert.passes.fusion.affine import Refusal
from syncbn_convert.passes.fusion.scaled import along, scaled

SHAPE = (37, 5, 3)
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=[64, 1 << 20], ids=["small blocks", "one block"], autouse=True)
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled_tensor, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(scaling, "_SEARCHED_BYTES", request.param)


def _values(dtype: Any) -> npt.NDArray[Any]:
    return np.random.default_rng(0).normal(size=SHAPE).astype(dtype)


def _in_file(values: npt.NDArray[Any], folder: Path) -> ir.ExternalTensor:
    """Write values behind an odd number of bytes."""
    (folder / "w.bin").write_bytes(b"odd" + values.tobytes() + b"behind")
    dtype = ir.DataType.from_numpy(values.dtype)
    shape = ir.Shape(values.shape)
    return ir.ExternalTensor(
        "w.bin", 3, values.nbytes, dtype, shape=shape, name="w", base_dir=folder
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("external", [False, True])
def test_blocks_are_parts_of_the_whole(
    dtype: Any, axis: int, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _values(dtype)
    factor = np.random.default_rng(1).uniform(-2, 2, SHAPE[axis])
    expected = (values.astype(np.float64) * along(factor, axis, 3)).astype(dtype)
    source: ir.TensorProtocol = ir.Tensor(values, name="w")
    if external:
        source = _in_file(values, tmp_path)
        monkeypatch.delattr(ir.ExternalTensor, "numpy")
    tensor = scaled(source, along(factor, axis, 3), axis)
    written = b"".join(block.tobytes() for block in tensor.blocks(block_bounds(tensor)))
    assert written == tensor.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert (tensor.dtype.numpy(), tuple(tensor.shape.numpy())) == (expected.dtype, SHAPE)
    joined = np.concatenate([block for _, _, block in wide_blocks(tensor)])
    np.testing.assert_array_equal(joined, expected.astype(np.float64))


def test_two_factors_are_rounded_once() -> None:
    values = _values(np.float16)
    first, second = (np.random.default_rng(seed).uniform(0.1, 3.0, 37) for seed in (1, 2))
    tensor = scaled(scaled(ir.Tensor(values), along(first, 0, 3), 0), along(second, 0, 3), 0)
    expected = (values.astype(np.float64) * along(first * second, 0, 3)).astype(np.float16)
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize(
    ("factor", "reason"), [(1e6, "overflow"), (1e-7, "underflow"), (np.nan, "overflow")]
)
def test_what_the_type_cannot_hold_is_refused(factor: float, reason: str) -> None:
    factors = np.ones(37)
    factors[-1] = factor
    with pytest.raises(Refusal, match=reason):
        scaled(ir.Tensor(_values(np.float16)), along(factors, 0, 3), 0)


def test_no_weights_are_refused() -> None:
    with pytest.raises(Refusal, match="empty"):
        scaled(ir.Tensor(np.zeros((4, 0, 1), np.float32)), np.ones((4, 1, 1)), 0)


def test_zeros_are_weights_like_others() -> None:
    values = _values(np.float32)
    values[3] = 0
    tensor = scaled(ir.Tensor(values), np.full((37, 1, 1), 0.5), 0)
    np.testing.assert_array_equal(tensor.numpy(), values / 2)


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    tensor = scaled(_in_file(_values(np.float32), tmp_path), np.ones((37, 1, 1)), 0)
    (tmp_path / "w.bin").write_bytes(b"odd and short")
    with pytest.raises(ModelFileError, match="ends within tensor 'w'"):
        list(tensor.blocks(block_bounds(tensor)))
