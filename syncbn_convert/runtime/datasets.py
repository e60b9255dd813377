"""Data for `calibrate`: global batches, and the piece of each that a replica gets."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.doors.npz import StoredArray, open_arrays
from syncbn_convert.errors import ModelFileError, SyncBNError, UsageError

Array = npt.NDArray[Any]
Samples = Mapping[str, Array]
Data = str | Path | Callable[[], Iterable[Samples]]

_PIECE_BYTES = 64 << 20
"""Of a file, in memory at once."""
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples of a model's inputs, in a fixed order.

    Attributes:
        name: What to call it in messages.
        size: Number of samples; None if only running through them tells.
        chunks: Yields the samples in pieces of any size, from the start at each call.
    """

    name: str
    size: int | None
    chunks: Callable[[], Iterator[dict[str, Array]]]


def open_dataset(source: Data, inputs: Sequence[str]) -> Dataset:
    """Open data for the inputs named.

    Args:
        source: An `.npz` file or a folder of them, with arrays named as the inputs (first axis:
            samples; further arrays are ignored); `package.module:function`, or the function itself,
            that yields dictionaries of such arrays.
        inputs: Names of the model's inputs.

    Raises:
        ModelFileError: if a file is missing, malformed, or lacks an input.
        UsageError: if `source` is neither file, folder nor function.
    """
    if callable(source):
        return _from_function(source, getattr(source, "__name__", "data"), inputs)
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.npz") if file.is_file())
        if not files:
            raise ModelFileError(f"{path}: the folder holds no .npz file; put the data there")
        return _from_files(str(path), files, inputs)
    if path.is_file() or ":" not in str(source):
        return _from_files(str(path), [path], inputs)
    return _from_function(_import(str(source)), str(source), inputs)


def global_batches(dataset: Dataset, batch_size: int) -> Iterator[dict[str, Array]]:
    """Yield batches of `batch_size` samples; the last one may be smaller."""
    rest: dict[str, Array] = {}
    for chunk in dataset.chunks():
        joined = {
            name: np.concatenate([rest[name], array]) if rest else array
            for name, array in chunk.items()
        }
        count = _count(joined)
        whole = count - count % batch_size
        for start in range(0, whole, batch_size):
            yield {name: array[start : start + batch_size] for name, array in joined.items()}
        rest = {name: array[whole:] for name, array in joined.items()}
    if rest and _count(rest):
        yield rest


def piece(batch: Samples, rank: int, size: int) -> dict[str, Array]:
    """Return one replica's share: consecutive samples, sizes that differ by at most one."""
    count = _count(batch)
    bounds = [count * index // size for index in (rank, rank + 1)]
    return {name: array[bounds[0] : bounds[1]] for name, array in batch.items()}


def _count(samples: Samples) -> int:
    return len(next(iter(samples.values())))


def _from_files(name: str, files: Sequence[Path], inputs: Sequence[str]) -> Dataset:
    opened = [_opened(path, inputs) for path in files]
    size = sum(next(iter(arrays.values())).shape[0] for arrays in opened)
    return Dataset(name, size, lambda: (piece for arrays in opened for piece in _pieces(arrays)))


def _opened(path: Path, inputs: Sequence[str]) -> dict[str, StoredArray]:
    held = open_arrays(path)
    arrays = {name: held[name] for name in inputs if name in held}
    lengths = {name: array.shape[0] if array.shape else -1 for name, array in arrays.items()}
    _check(lengths, inputs, f"{path}", held)
    return arrays


def _pieces(arrays: Mapping[str, StoredArray]) -> Iterator[dict[str, Array]]:
    """Yield the samples of a file, a bounded part of it at a time."""
    rows = max(1, _PIECE_BYTES // max(1, sum(array.row_bytes for array in arrays.values())))
    for parts in zip(*(array.pieces(rows) for array in arrays.values()), strict=True):
        yield dict(zip(arrays, parts, strict=True))


def _checked(
    arrays: dict[str, Array], inputs: Sequence[str], origin: str, held: Iterable[str]
) -> dict[str, Array]:
    lengths = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    _check(lengths, inputs, origin, held)
    return arrays


def _check(
    lengths: Mapping[str, int], inputs: Sequence[str], origin: str, held: Iterable[str]
) -> None:
    missing = [name for name in inputs if name not in lengths]
    if missing:
        raise ModelFileError(
            f"{origin}: has no array '{missing[0]}' for that input of the model; it holds "
            f"{', '.join(held) or 'none'}"
        )
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise ModelFileError(
            f"{origin}: the arrays differ in their number of samples: {lengths}; the first axis "
            "must be the same"
        )


def _from_function(
    function: Callable[[], Iterable[Samples]], name: str, inputs: Sequence[str]
) -> Dataset:
    def chunks() -> Iterator[dict[str, Array]]:
        try:
            for samples in function():
                arrays = {key: np.asarray(value) for key, value in samples.items() if key in inputs}
                yield _checked(arrays, inputs, name, samples)
        except SyncBNError:
            raise
        except Exception as error:
            _logger.info("data '%s' raised", name, exc_info=True)
            raise UsageError(
                f"data '{name}' raised {type(error).__name__}: {error}; correct the function"
            ) from error

    return Dataset(name, None, chunks)


def _import(reference: str) -> Callable[[], Iterable[Samples]]:
    module_name, _, function_name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise UsageError(
            f"data '{reference}' is neither a file nor a function that can be imported "
            f"({type(error).__name__}: {error}); give an .npz file, a folder of them, or "
            "package.module:function"
        ) from error
    if not callable(function):
        raise UsageError(f"data '{reference}' is no function; give one that yields dictionaries")
    checked: Callable[[], Iterable[Samples]] = function
    return checked
