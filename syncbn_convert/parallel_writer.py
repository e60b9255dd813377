"""Writing big tensors to a file of external data, by blocks and on several threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import RawIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from syncbn_convert.fusion.scaled import BLOCK_BYTES, Bounds, ScaledTensor, block_bounds, fill
from syncbn_convert.tensors import WORKERS, external_tensor

_FLUSH_SECONDS = 0.05
_TASK_BLOCKS = 128
"""So many blocks follow one another in one thread, so that the file grows nearly in order."""


class _Task(NamedTuple):
    """A part of a tensor.

    Attributes:
        tensor: The tensor.
        offset: Where it begins in the file.
        bounds: Rows of a scaled tensor, else bytes.
    """

    tensor: ir.TensorProtocol
    offset: int
    bounds: list[Bounds]


def write_tensors(tensors: Sequence[ir.TensorProtocol], path: Path) -> list[ir.ExternalTensor]:
    """Write tensors one behind the other; return what reads them from there.

    Memory does not grow with the tensors: what is in a file, or is made of what is, goes through
    block by block.

    Args:
        tensors: What to write; none of them is in `path`.
        path: The file, which is made anew.

    Raises:
        OSError: if it cannot be written.
        ModelFileError: if the file of a tensor was cut off meanwhile.
    """
    stored: list[ir.ExternalTensor] = []
    tasks: list[_Task] = []
    offset = 0
    for tensor in tensors:
        stored.append(external_tensor(tensor, path.name, offset, path.parent))
        tasks += _tasks(tensor, offset)
        offset += tensor.nbytes
    path.write_bytes(b"")
    with _flushed_meanwhile(path), ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(lambda task: _run(task, path), tasks):
            pass
    return stored


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


def _tasks(tensor: ir.TensorProtocol, offset: int) -> Iterator[_Task]:
    if isinstance(tensor, ScaledTensor):
        bounds = block_bounds(tensor)
    elif isinstance(tensor, ir.ExternalTensor):
        starts = range(0, tensor.nbytes, BLOCK_BYTES)
        bounds = [(start, min(start + BLOCK_BYTES, tensor.nbytes)) for start in starts]
    else:
        bounds = [(0, tensor.nbytes)]
    for start in range(0, len(bounds), _TASK_BLOCKS):
        yield _Task(tensor, offset, bounds[start : start + _TASK_BLOCKS])


def _run(task: _Task, path: Path) -> None:
    with path.open("r+b", buffering=0) as target:
        if isinstance(task.tensor, ScaledTensor):
            row_bytes = task.tensor.nbytes // task.tensor.shape.numpy()[0]
            target.seek(task.offset + task.bounds[0][0] * row_bytes)
            for block in task.tensor.blocks(task.bounds):
                _write(target, block.view(np.uint8).data.cast("B"))
        elif isinstance(task.tensor, ir.ExternalTensor):
            target.seek(task.offset + task.bounds[0][0])
            _copy(task.tensor, task.bounds, target)
        else:
            target.seek(task.offset)
            _write(target, memoryview(task.tensor.tobytes()))


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
