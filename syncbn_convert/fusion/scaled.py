"""Weights times factors, computed block by block when they are written."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.fusion.affine import Float64, Refusal
from syncbn_convert.verification.tolerance import epsilon

Array = npt.NDArray[Any]

_BLOCK_BYTES = 1 << 20
"""Of weights; with its float64 results it should stay in a processor's cache."""
_ROUNDINGS = 2.0


class ScaledTensor(ir.LazyTensor):
    """A weight times factors that broadcast to it; products are of float64 and rounded once.

    Attributes:
        source: The weight, of any floating-point type.
        factor: Float64 of the same rank.
    """

    def __init__(self, source: ir.TensorProtocol, factor: Float64, name: str | None = None) -> None:
        shape = ir.Shape(source.shape.numpy())
        super().__init__(self._whole, source.dtype, shape, name=name)
        self.source = source
        self.factor = factor

    def blocks(self) -> Iterator[Array]:
        """Yield the values, cut along the first axis."""
        start = 0
        for block in blocks(self.source):
            stop = start + len(block)
            with np.errstate(all="ignore"):
                yield _product(block, _rows(self.factor, start, stop)).astype(block.dtype)
            start = stop

    def tofile(self, file: BinaryIO) -> None:
        """Write the values, never more than a block of them in memory."""
        for block in self.blocks():
            file.write(block.view(np.uint8).data)

    def _whole(self) -> ir.TensorProtocol:
        values = np.concatenate(list(self.blocks()))
        return ir.Tensor(values, self.dtype, shape=self.shape, name=self.name)


def blocks(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """Yield the values of a tensor of rank 1 or more, cut along the first axis.

    Those of a file are read block by block.
    """
    if isinstance(tensor, ScaledTensor):
        yield from tensor.blocks()
        return
    shape = tensor.shape.numpy()
    step = max(1, _BLOCK_BYTES * shape[0] // max(1, tensor.nbytes))
    if isinstance(tensor, ir.ExternalTensor):
        yield from _blocks_of_file(tensor, step)
        return
    values = tensor.numpy()
    yield from (values[start : start + step] for start in range(0, max(1, shape[0]), step))


def _blocks_of_file(tensor: ir.ExternalTensor, step: int) -> Iterator[Array]:
    rows, *others = tensor.shape.numpy()
    dtype = tensor.dtype.numpy().newbyteorder("<")
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0, os.SEEK_SET)
        for start in range(0, rows, step):
            shape = (min(step, rows - start), *others)
            yield np.fromfile(file, dtype, int(np.prod(shape))).reshape(shape)


def wide_blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[int, int, Float64]]:
    """Yield the values as float64, cut along the first axis, each with where it begins and ends."""
    start = 0
    for block in blocks(tensor):
        yield start, start + len(block), block.astype(np.float64)
        start += len(block)


def along(values: Float64, axis: int, rank: int) -> Float64:
    """Return `values` as factors along one of `rank` axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def scaled(tensor: ir.TensorProtocol, factor: Float64, channel_axis: int) -> ScaledTensor:
    """Return a weight times `factor`, which broadcasts to it.

    Raises:
        Refusal: if products overflow the type of the weight, or those of an output channel fall
            below what it can tell apart.
    """
    dtype = tensor.dtype.numpy()
    earlier = tensor.factor if isinstance(tensor, ScaledTensor) else np.float64(1.0)
    source = tensor.source if isinstance(tensor, ScaledTensor) else tensor
    factor = earlier * factor
    with np.errstate(all="ignore"):
        largest = _largest(source, factor) * np.abs(factor)
        finite = np.isfinite(largest.astype(dtype).astype(np.float64)).all()
    if not finite:
        raise Refusal(f"the fused weights overflow {dtype}")
    others = tuple(axis for axis in range(factor.ndim) if axis != channel_axis)
    of_channels = largest.max(axis=others, initial=0.0)
    result = ScaledTensor(source, factor)
    if (of_channels < _smallest_normal(dtype)).any():
        _require_precision(result, channel_axis)
    return result


@functools.cache
def _smallest_normal(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]


def _largest(tensor: ir.TensorProtocol, factor: Float64) -> Float64:
    """Return the largest magnitude of the weights that share a factor."""
    shared = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)
    parts: list[Float64] = []
    for block in blocks(tensor):
        ends = (block.max(axis=shared, keepdims=True), block.min(axis=shared, keepdims=True))
        parts.append(np.maximum(*(np.abs(end.astype(np.float64)) for end in ends)))
    largest: Float64 = np.maximum.reduce(parts) if 0 in shared else np.concatenate(parts)
    return largest


def _require_precision(tensor: ScaledTensor, channel_axis: int) -> None:
    wide = _product(tensor.source.numpy(), tensor.factor)
    error = np.abs(tensor.numpy().astype(np.float64) - wide)
    others = tuple(axis for axis in range(wide.ndim) if axis != channel_axis)
    largest = np.abs(wide).max(axis=others, keepdims=True, initial=0.0)
    dtype = tensor.dtype.numpy()
    if (error > _ROUNDINGS * epsilon(dtype) * largest).any():
        raise Refusal(f"the fused weights underflow {dtype}")


def _product(block: Array, factor: Float64) -> Float64:
    product: Float64 = np.multiply(block, factor, dtype=np.float64)
    return product


def _rows(factor: Float64, start: int, stop: int) -> Float64:
    return factor if factor.shape[0] == 1 else factor[start:stop]
