"""Weights times factors, computed block by block when they are written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO, RawIOBase
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.errors import ModelFileError
from syncbn_convert.files.tensors import WORKERS
from syncbn_convert.passes.fusion.affine import Float64, Refusal
from syncbn_convert.verification.tolerance import epsilon, smallest_normal

Array = npt.NDArray[Any]
Bounds = tuple[int, int]

BLOCK_BYTES = 256 << 10
"""Of weights; with its float64 results it should stay in a processor's cache."""
_SEARCHED_BYTES = 512 << 10
"""Of weights whose extremes are looked for: each block is compared with what was found before."""
_BLOCKS_WORTH_THREADS = 16
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

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.source.nbytes

    def blocks(self, bounds: Sequence[Bounds]) -> Iterator[Array]:
        """Yield parts of the values, cut along the first axis; each is valid until the next."""
        dtype = self.dtype.numpy()
        room = np.empty(_largest_block(bounds, self.shape.numpy()), dtype)
        for (start, stop), block in zip(bounds, read_blocks(self.source, bounds), strict=True):
            factor = self.factor if self.factor.shape[0] == 1 else self.factor[start:stop]
            result = room[: block.size].reshape(block.shape)
            with np.errstate(all="ignore"):
                np.multiply(block, factor, out=result, dtype=np.float64, casting="unsafe")
            yield result

    def _whole(self) -> ir.TensorProtocol:
        shape = self.shape.numpy()
        [values] = self.blocks([(0, shape[0])])
        return ir.Tensor(values, self.dtype, shape=self.shape, name=self.name)


def block_bounds(tensor: ir.TensorProtocol, nbytes: int | None = None) -> list[Bounds]:
    """Return where blocks of a tensor of rank 1 or more begin and end along its first axis."""
    rows = tensor.shape.numpy()[0]
    step = max(1, (nbytes or BLOCK_BYTES) * rows // max(1, tensor.nbytes))
    return [(start, min(start + step, rows)) for start in range(0, max(1, rows), step)]


def read_blocks(tensor: ir.TensorProtocol, bounds: Sequence[Bounds]) -> Iterator[Array]:
    """Yield parts of a tensor, cut along its first axis; each is valid until the next.

    Fresh memory for each would cost more than the reading.
    """
    if isinstance(tensor, ScaledTensor):
        yield from tensor.blocks(bounds)
    elif isinstance(tensor, ir.ExternalTensor):
        yield from _read_file(tensor, bounds)
    else:
        values = tensor.numpy()
        yield from (values[start:stop] for start, stop in bounds)


def _read_file(tensor: ir.ExternalTensor, bounds: Sequence[Bounds]) -> Iterator[Array]:
    _, *shape = dims = tensor.shape.numpy()
    room = np.empty(_largest_block(bounds, dims), tensor.dtype.numpy().newbyteorder("<"))
    row_size = math.prod(shape)
    with FileIO(tensor.path) as file:
        for start, stop in bounds:
            block = room[: (stop - start) * row_size]
            file.seek((tensor.offset or 0) + start * row_size * room.itemsize)
            fill(block.view(np.uint8).data, file, tensor)
            yield block.reshape(stop - start, *shape)


def fill(target: memoryview, file: RawIOBase, tensor: ir.ExternalTensor) -> None:
    """Read all of `target` from the file of a tensor; one call may return less.

    Raises:
        ModelFileError: if the file ends before.
    """
    filled = 0
    while filled < len(target):
        count = file.readinto(target[filled:])
        if not count:
            raise ModelFileError(
                f"{tensor.path}: ends within tensor {tensor.name!r}; it was changed meanwhile, "
                "start again"
            )
        filled += count


def _largest_block(bounds: Sequence[Bounds], shape: Sequence[int]) -> int:
    return max(stop - start for start, stop in bounds) * math.prod(shape[1:])


def wide_blocks(tensor: ir.TensorProtocol) -> Iterator[tuple[int, int, Float64]]:
    """Yield the values as float64, cut along the first axis, each with where it begins and ends."""
    bounds = block_bounds(tensor)
    for (start, stop), block in zip(bounds, read_blocks(tensor, bounds), strict=True):
        yield start, stop, block.astype(np.float64)


def along(values: Float64, axis: int, rank: int) -> Float64:
    """Return `values` as factors along one of `rank` axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def scaled(tensor: ir.TensorProtocol, factor: Float64, channel_axis: int) -> ScaledTensor:
    """Return a weight times `factor`, which broadcasts to it.

    Raises:
        Refusal: if there are no weights, if products overflow their type, or if those of an output
            channel fall below what it can tell apart.
    """
    if not tensor.size:
        raise Refusal("the weights are empty")
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
    if (of_channels < smallest_normal(dtype)).any():
        _require_precision(result, channel_axis)
    return result


def _largest(tensor: ir.TensorProtocol, factor: Float64) -> Float64:
    """Return the largest magnitude of the weights that share a factor."""
    shared = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)

    bounds = block_bounds(tensor, _SEARCHED_BYTES)
    if len(bounds) < _BLOCKS_WORTH_THREADS:
        return _largest_of_blocks(tensor, bounds, shared)
    share = -(-len(bounds) // WORKERS)
    shares = [bounds[start : start + share] for start in range(0, len(bounds), share)]
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(lambda part: _largest_of_blocks(tensor, part, shared), shares))
    largest: Float64 = np.maximum.reduce(parts) if 0 in shared else np.concatenate(parts)
    return largest


def _largest_of_blocks(
    tensor: ir.TensorProtocol, bounds: Sequence[Bounds], shared: tuple[int, ...]
) -> Float64:
    found: list[Array] = []
    for block in read_blocks(tensor, bounds):
        high, low = block.max(axis=shared, keepdims=True), block.min(axis=shared, keepdims=True)
        largest = np.maximum(high, -low)
        if found and 0 in shared:
            np.maximum(found[0], largest, out=found[0])
        else:
            found.append(largest)
    return np.concatenate(found).astype(np.float64)


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
