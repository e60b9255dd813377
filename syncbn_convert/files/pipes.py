"""Models that come through a pipe, which can be read only once."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

from syncbn_convert.errors import ModelFileError

_LARGEST = 1 << 31
"""Bytes; a protobuf, and so an ONNX file, is smaller."""
_BLOCK = 1 << 20
_PATIENCE = 2.0
"""Seconds that somebody has to begin to write."""


def is_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a pipe.

    Raises:
        ModelFileError: if it leads to a device or socket, which no model comes from.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False  # who opens it will say why
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise ModelFileError(f"{os.fspath(path)}: is a device or socket; give a file or a pipe")
    return stat.S_ISFIFO(mode)


def store(path: str | os.PathLike[str], folder: Path) -> Path:
    """Write what comes through a pipe into a file.

    Args:
        path: The pipe.
        folder: Where to.

    Returns:
        The file.

    Raises:
        ModelFileError: if nothing comes, or more than a model can be.
    """
    target = folder / "piped.onnx"
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with target.open("wb") as file:
            _copy(source, file.fileno(), os.fspath(path))
    finally:
        os.close(source)
    return target


def _copy(source: int, target: int, name: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    total = 0
    while True:
        try:
            block = os.read(source, _BLOCK)
        except BlockingIOError:
            select.select([source], [], [])
            continue
        if not block:
            if total:
                return
            if time.monotonic() > deadline:
                raise ModelFileError(
                    f"{name}: is a pipe that nobody writes to; start what writes a model to it"
                )
            time.sleep(0.02)
            continue
        total += len(block)
        if total > _LARGEST:
            raise ModelFileError(f"{name}: more than {_LARGEST} bytes come; give a model's file")
        written = 0
        while written < len(block):
            written += os.write(target, block[written:])
