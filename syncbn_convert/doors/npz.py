"""Arrays of `.npz` files, read piece by piece; nothing is allocated because a header says so.

The format is NumPy's NEP 1, without what needs pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.doors.zip_members import open_archive
from syncbn_convert.errors import ModelFileError

Array = npt.NDArray[Any]

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 64 << 10
_MOST_AXES = 32
_SUFFIX = ".npy"
_DESCR = re.compile(r"'descr'\s*:\s*'([<>|=]?[?a-zA-Z][0-9]{0,9})'")
_ORDER = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(([0-9,\sL]*)\)")
_SIZE = re.compile(r"[0-9]{1,18}")
_NUMBERS = "biuf"


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in an archive.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its type: numbers or booleans.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _path: Path
    _member: str
    _start: int
    _fortran: bool

    def pieces(self, rows: int) -> Iterator[Array]:
        """Yield the array cut along its first axis, `rows` at a time.

        Raises:
            ModelFileError: if the file ends before, or its bytes are damaged.
        """
        with _archive(self._path) as archive, archive.open(self._member) as file:
            _read_exactly(file, self._start, self._path, self.name)
            if self._fortran:
                whole = np.empty(self.shape, self.dtype, order="F")
                self._fill(file, whole.reshape(-1, order="F"))
                yield from (whole[at : at + rows] for at in range(0, self.shape[0], rows))
                return
            for at in range(0, self.shape[0], rows):
                piece = np.empty((min(rows, self.shape[0] - at), *self.shape[1:]), self.dtype)
                self._fill(file, piece.reshape(-1))
                yield piece

    def first(self, rows: int) -> Array:
        """Return the first rows, or all where there are fewer.

        Raises:
            ModelFileError: as `pieces`.
        """
        return next(self.pieces(max(1, rows)), np.empty(self.shape, self.dtype))

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def _fill(self, file: IO[bytes], flat: Array) -> None:
        target = flat.view(np.uint8).data
        filled = 0
        while filled < len(target):
            part = file.read(min(1 << 20, len(target) - filled))
            if not part:
                raise _fault(self._path, self.name, "ends before its header says")
            target[filled : filled + len(part)] = part
            filled += len(part)


def open_arrays(path: Path) -> Mapping[str, StoredArray]:
    """Return the arrays of a file by name; no data is read.

    Raises:
        ModelFileError: if it is no regular file of plain arrays with a first axis.
    """
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path}: is no regular file; give an .npz file")
    found = {}
    with _archive(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(_SUFFIX)
            if name != member.filename:
                found[name] = _stored(path, archive, member, name)
    return found


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with open_archive(path, "an .npz file of named arrays, as numpy.savez writes") as archive:
        yield archive


def _stored(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
) -> StoredArray:
    with archive.open(member) as file:
        start, header = _header(file, path, name)
    descr, order, shape = (p.search(header) for p in (_DESCR, _ORDER, _SHAPE))
    if not (descr and order and shape):
        raise _fault(path, name, "is no array of plain numbers")
    try:
        dtype = np.dtype(descr.group(1))
    except TypeError as error:
        raise _fault(path, name, f"has the unknown type {descr.group(1)}") from error
    if dtype.kind not in _NUMBERS:
        raise _fault(path, name, f"is of type {dtype}, which is neither number nor boolean")
    sizes = [part.strip().removesuffix("L") for part in shape.group(1).split(",") if part.strip()]
    if len(sizes) > _MOST_AXES or not all(map(_SIZE.fullmatch, sizes)):
        raise _fault(path, name, "has a shape that no array has")
    dims = tuple(map(int, sizes))
    held = member.file_size - start
    if math.prod(dims) * dtype.itemsize != held:
        shown = "x".join(map(str, dims))
        raise _fault(path, name, f"of shape {shown} and type {dtype} has {held} bytes")
    if math.prod(size for size in dims if size) * dtype.itemsize >= 1 << 62:
        raise _fault(path, name, "has a shape that no array has")
    return StoredArray(name, dims, dtype, path, member.filename, start, order.group(1) == "True")


def _header(file: IO[bytes], path: Path, name: str) -> tuple[int, str]:
    """Return where the data starts, and the text of the header."""
    prefix = _read_exactly(file, len(_MAGIC) + 2, path, name)
    major = prefix[len(_MAGIC)]
    if not prefix.startswith(_MAGIC) or major not in (1, 2, 3):
        raise _fault(path, name, "is no array")
    width = 2 if major == 1 else 4
    length = int.from_bytes(_read_exactly(file, width, path, name), "little")
    if length > _LONGEST_HEADER:
        raise _fault(path, name, f"has a header of {length} bytes")
    header = _read_exactly(file, length, path, name)
    return len(prefix) + width + length, header.decode("latin-1")


def _read_exactly(file: IO[bytes], count: int, path: Path, name: str) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise _fault(path, name, "is cut off")
    return content


def _fault(path: Path, name: str, cause: str) -> ModelFileError:
    return ModelFileError(f"{path}: array '{name}' {cause}; save it again with numpy.savez")
