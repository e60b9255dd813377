"""Writing files that hold big tensors, by blocks and on several threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO, RawIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import NO_ROOM
from syncbn_convert.files.scaled_tensor import BLOCK_BYTES, Bounds, ScaledTensor, block_bounds, fill
from syncbn_convert.files.tensors import WORKERS, external_tensor

Piece = bytes | ir.TensorProtocol
"""A part of a file: these bytes, or those of a tensor's values."""

_WRITTEN_BYTES = 64 << 10
"""At once; Linux looks for contiguous memory for more, and may look long."""
_CACHED_BYTES = 256 << 20
"""Of external data; pages that are let go are used again for what follows."""
_TASK_BYTES = 32 << 20
"""So many bytes follow one another in one thread, so that the file grows nearly in order."""

_Part = tuple[Piece, list[Bounds]]
"""A part of a piece: rows of a scaled tensor, else bytes."""


class _Task(NamedTuple):
    """Parts that follow one another, and where they begin and end in the file."""

    start: int
    end: int
    parts: list[_Part]


def write_tensors(tensors: Sequence[ir.TensorProtocol], path: Path) -> list[ir.ExternalTensor]:
    """Write tensors one behind the other, as `write_pieces` does; return what reads them there.

    Of a big file only the end stays in the system's memory, which others use better.
    """
    stored: list[ir.ExternalTensor] = []
    offset = 0
    for tensor in tensors:
        stored.append(external_tensor(tensor, path.name, offset, path.parent))
        offset += tensor.nbytes
    write_pieces(tensors, path, cached_bytes=_CACHED_BYTES)
    return stored


def write_pieces(pieces: Iterable[Piece], path: Path, cached_bytes: int | None = None) -> None:
    """Write a file, one piece behind the other.

    Memory does not grow with the tensors: what is in a file, or is made of what is, goes through
    block by block.

    Args:
        pieces: What to write; no tensor is in `path`.
        path: The file, which is made anew.
        cached_bytes: How much of its end stays in the system's memory; None is the whole file.

    Raises:
        OSError: if it cannot be written.
        ModelFileError: if the file of a tensor was cut off meanwhile.
    """
    tasks = list(_tasks(pieces))
    with path.open("wb", buffering=0) as file:
        _take_room(file, tasks[-1].end)
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(lambda task: _run(task, path, cached_bytes), tasks):
            pass


def _take_room(file: RawIOBase, nbytes: int) -> None:
    """Let a file have its size at once: a full disk is found before work, and writing is quicker.

    Where a file system cannot, the C library may write into each block instead, or refuse.
    """
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is None or not nbytes:
        return
    try:
        allocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise


def _let_go(file: RawIOBase, start: int, end: int) -> None:
    """Let a part of a file go to the disk and, where it is there already, out of memory."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None and end > start:
        with contextlib.suppress(OSError):
            advise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _tasks(pieces: Iterable[Piece]) -> Iterator[_Task]:
    start = end = 0
    parts: list[_Part] = []
    for piece in pieces:
        for part, nbytes in _parts(piece):
            if parts and end + nbytes - start > _TASK_BYTES:
                yield _Task(start, end, parts)
                start, parts = end, []
            parts.append(part)
            end += nbytes
    yield _Task(start, end, parts)


def _parts(piece: Piece) -> Iterator[tuple[_Part, int]]:
    """Cut a piece into parts, each with its size; what is in no file stays whole."""
    if isinstance(piece, bytes):
        yield (piece, []), len(piece)
        return
    nbytes = piece.nbytes
    if isinstance(piece, ScaledTensor):
        bounds, unit = block_bounds(piece), nbytes // piece.shape.numpy()[0] if nbytes else 0
    elif isinstance(piece, ir.ExternalTensor):
        starts = range(0, nbytes, BLOCK_BYTES)
        bounds, unit = [(start, min(start + BLOCK_BYTES, nbytes)) for start in starts], 1
    else:
        bounds, unit = [(0, nbytes)], 1
    blocks = max(1, _TASK_BYTES // BLOCK_BYTES)
    for first in range(0, len(bounds), blocks):
        found = bounds[first : first + blocks]
        yield (piece, found), (found[-1][1] - found[0][0]) * unit


def _run(task: _Task, path: Path, cached_bytes: int | None) -> None:
    with path.open("r+b", buffering=0) as target:
        target.seek(task.start)
        for piece, bounds in task.parts:
            if isinstance(piece, bytes):
                _write(target, memoryview(piece))
            elif isinstance(piece, ScaledTensor):
                for block in piece.blocks(bounds):
                    _write(target, block.view(np.uint8).data.cast("B"))
            elif isinstance(piece, ir.ExternalTensor):
                _copy(piece, bounds, target)
            else:
                _write(target, _bytes_of(piece))
        _let_go(target, task.start, task.end)
        if cached_bytes is not None:
            _let_go(target, 0, task.start - cached_bytes)


def _copy(tensor: ir.ExternalTensor, bounds: Sequence[Bounds], target: RawIOBase) -> None:
    room = memoryview(bytearray(bounds[0][1] - bounds[0][0]))
    with FileIO(tensor.path) as file:
        file.seek((tensor.offset or 0) + bounds[0][0])
        for start, stop in bounds:
            block = room[: stop - start]
            fill(block, file, tensor)
            _write(target, block)


def _bytes_of(tensor: ir.TensorProtocol) -> memoryview:
    """Return the bytes of a tensor in memory, which are not copied if they are as ONNX has them."""
    if not isinstance(tensor, ir.Tensor) or tensor.dtype.bitwidth % 8:
        return memoryview(tensor.tobytes())
    values = tensor.numpy()
    return (
        np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    )


def _write(target: RawIOBase, block: memoryview) -> None:
    written = 0
    while written < len(block):
        written += target.write(block[written : written + _WRITTEN_BYTES]) or 0
