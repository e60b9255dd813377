"""Weights times factors, computed block by block when they are written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from io import FileIO, RawIOBase
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.errors import ModelFileError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Bounds = tuple[int, int]

BLOCK_BYTES = 256 << 10
"""Of weights; with its float64 results it should stay in a processor's cache."""


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
