"""Named arrays of several runs in one `.npz` file, for numpy's types and those of ml_dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers its types with numpy)
import numpy as np

from syncbn_convert.verification.tolerance import Array, Feeds

_REGISTERED_BY_ANOTHER_PACKAGE = 2

Index = list[list[tuple[str, str]]]
"""Name and element type of each array, run by run."""


def save_arrays(path: Path, runs: Sequence[Feeds]) -> Index:
    """Write the arrays of several runs and return what `load_arrays` needs beside the file."""
    stored = {
        f"{number}.{place}": _plain(array)
        for number, run in enumerate(runs)
        for place, array in enumerate(run.values())
    }
    np.savez(path, **stored)  # type: ignore[arg-type]
    return [[(name, str(array.dtype)) for name, array in run.items()] for run in runs]


def load_arrays(path: Path, index: Index) -> list[dict[str, Array]]:
    """Return the arrays of several runs, by name."""
    with np.load(path, allow_pickle=False) as stored:
        return [
            {
                name: _typed(stored[f"{number}.{place}"], np.dtype(dtype))
                for place, (name, dtype) in enumerate(run)
            }
            for number, run in enumerate(index)
        ]


def _plain(array: Array) -> Array:
    if array.dtype == object:
        return array.astype(str)
    return array.view(f"u{array.dtype.itemsize}") if _is_foreign(array.dtype) else array


def _typed(array: Array, dtype: np.dtype[np.generic]) -> Array:
    return array.view(dtype) if _is_foreign(dtype) else array.astype(dtype, copy=False)


def _is_foreign(dtype: np.dtype[np.generic]) -> bool:
    return dtype.isbuiltin == _REGISTERED_BY_ANOTHER_PACKAGE
