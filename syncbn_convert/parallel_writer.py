"""Writing files that hold big tensors, by blocks and on several threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path

import numpy as np
import onnx_ir as ir

from syncbn_convert.fusion.scaled import BLOCK_BYTES, Bounds, ScaledTensor, block_bounds, fill
from syncbn_convert.tensors import WORKERS, external_tensor

Piece = bytes | ir.TensorProtocol
"""A part of a file: these bytes, or those of a tensor's values."""

_FLUSH_SECONDS = 0.05
_TASK_BYTES = 32 << 20
"""So many bytes follow one another in one thread, so that the file grows nearly in order."""

_Part = tuple[Piece, list[Bounds]]
"""A part of a piece: rows of a scaled tensor, else bytes."""
_Task = tuple[int, list[_Part]]
"""Parts that follow one another, and where the first begins in the file."""


def write_tensors(tensors: Sequence[ir.TensorProtocol], path: Path) -> list[ir.ExternalTensor]:
    """Write tensors one behind the other, as `write_pieces` does; return what reads them there."""
    stored: list[ir.ExternalTensor] = []
    offset = 0
    for tensor in tensors:
        stored.append(external_tensor(tensor, path.name, offset, path.parent))
        offset += tensor.nbytes
    write_pieces(tensors, path)
    return stored


def write_pieces(pieces: Iterable[Piece], path: Path) -> None:
    """Write a file, one piece behind the other.

    Memory does not grow with the tensors: what is in a file, or is made of what is, goes through
    block by block.

    Args:
        pieces: What to write; no tensor is in `path`.
        path: The file, which is made anew.

    Raises:
        OSError: if it cannot be written.
        ModelFileError: if the file of a tensor was cut off meanwhile.
    """
    path.write_bytes(b"")
    with _flushed_meanwhile(path), ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(lambda task: _run(task, path), list(_tasks(pieces))):
            pass


@contextlib.contextmanager
def _flushed_meanwhile(path: Path) -> Iterator[None]:
    """Let what is written go to the disk while more is calculated, not all of it in the end."""
    done = threading.Event()

    def flush() -> None:
        with path.open("r+b", buffering=0) as file:
            while not done.wait(_FLUSH_SECONDS):
                os.fsync(file.fileno())

    with ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(flush)
        try:
            yield
        finally:
            done.set()
        flushing.result()


def _tasks(pieces: Iterable[Piece]) -> Iterator[_Task]:
    start = end = 0
    parts: list[_Part] = []
    for piece in pieces:
        for part, nbytes in _parts(piece):
            if parts and end + nbytes - start > _TASK_BYTES:
                yield start, parts
                start, parts = end, []
            parts.append(part)
            end += nbytes
    yield start, parts


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


def _run(task: _Task, path: Path) -> None:
    offset, parts = task
    with path.open("r+b", buffering=0) as target:
        target.seek(offset)
        for piece, bounds in parts:
            if isinstance(piece, bytes):
                _write(target, memoryview(piece))
            elif isinstance(piece, ScaledTensor):
                for block in piece.blocks(bounds):
                    _write(target, block.view(np.uint8).data.cast("B"))
            elif isinstance(piece, ir.ExternalTensor):
                _copy(piece, bounds, target)
            else:
                _write(target, memoryview(piece.tobytes()))


def _copy(tensor: ir.ExternalTensor, bounds: Sequence[Bounds], target: RawIOBase) -> None:
    room = memoryview(bytearray(bounds[0][1] - bounds[0][0]))
    with open(tensor.path, "rb", buffering=0) as file:
        file.seek((tensor.offset or 0) + bounds[0][0])
        for start, stop in bounds:
            block = room[: stop - start]
            fill(block, file, tensor)
            _write(target, block)


def _write(target: RawIOBase, block: memoryview) -> None:
    written = 0
    while written < len(block):
        written += target.write(block[written:]) or 0
