"""Arrays in files: `.npz`, folders of them, and folders of `.npy`, which stay on the disk."""

from __future__ import annotations

import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.doors import npz
from syncbn_convert.doors.npz import open_arrays
from syncbn_convert.errors import ModelFileError

Array = npt.NDArray[Any]


class StoredArray:
    """An array in an `.npy` file, of which only what is asked for is read.

    The file is mapped for each reading alone, so that pages do not add up in memory.

    Args:
        path: The file.

    Raises:
        ModelFileError: if it is no such file, or holds no numbers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        mapped = self._map()
        self.shape, self.dtype = mapped.shape, mapped.dtype

    def __getitem__(self, index: Any) -> Array:
        """Return a copy of some samples."""
        return np.array(self._map()[index])

    def _map(self) -> Array:
        try:
            found: Array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise ModelFileError(
                f"{self._path}: cannot be read: {error.strerror or error}; save it again"
            ) from error
        except (ValueError, EOFError, SyntaxError, OverflowError, tokenize.TokenError) as error:
            raise ModelFileError(_not_readable(self._path, ".npy", error)) from error
        if not isinstance(found, np.ndarray):
            raise ModelFileError(f"{self._path}: is no .npy file; save one array with numpy.save")
        return found


def read_npz(path: Path, names: Sequence[str]) -> tuple[dict[str, Array], list[str]]:
    """Return those arrays of a file that are named, and the names of all.

    Raises:
        ModelFileError: if it cannot be read.
    """
    held = open_arrays(path)
    return {name: _whole(held[name]) for name in names if name in held}, list(held)


def _whole(array: npz.StoredArray) -> Array:
    return array.first(array.shape[0]) if array.shape else np.zeros((), array.dtype)


def columns_of(path: Path, names: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the arrays of a file or a folder by name, and the names of all that it holds.

    Args:
        path: An `.npz` file, a folder of them, or a folder with an `.npy` file for each input.
        names: Which are wanted.

    Raises:
        ModelFileError: if something cannot be read, or the folder holds neither kind.
    """
    if not path.is_dir():
        return read_npz(path, names)
    parts = sorted(file for file in path.glob("*.npz") if file.is_file())
    singles = {file.stem: file for file in sorted(path.glob("*.npy")) if file.is_file()}
    if singles and parts:
        raise ModelFileError(f"{path}: the folder holds .npz and .npy files; leave one kind there")
    if singles:
        return {n: StoredArray(singles[n]) for n in names if n in singles}, list(singles)
    if not parts:
        raise ModelFileError(
            f"{path}: the folder holds no .npz file and no .npy file; put the data there"
        )
    read = [(file, *read_npz(file, names)) for file in parts]
    for file, arrays, held in read:
        for name in names:
            if name not in arrays:
                raise ModelFileError(
                    f"{file}: has no array '{name}' for that input of the model; it holds "
                    f"{', '.join(held) or 'none'}"
                )
        _check_alike(file, arrays, read[0][1])
    joined = {name: np.concatenate([arrays[name] for _, arrays, _ in read]) for name in names}
    return joined, list(names)


def _check_alike(file: Path, arrays: Mapping[str, Array], first: Mapping[str, Array]) -> None:
    lengths = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise ModelFileError(
            f"{file}: the arrays differ in their number of samples: {lengths}; the first axis "
            "must be the same"
        )
    for name, array in arrays.items():
        if array.shape[1:] != first[name].shape[1:]:
            raise ModelFileError(
                f"{file}: '{name}' has samples of shape {list(array.shape[1:])}, in the first file "
                f"{list(first[name].shape[1:])}; give all the same"
            )


def _not_readable(path: Path, kind: str, error: Exception) -> str:
    if "Object arrays" in str(error) or "allow_pickle" in str(error):
        return f"{path}: holds Python objects, which are not read; save arrays of numbers"
    return f"{path}: not an {kind} file ({error}); save it again"
