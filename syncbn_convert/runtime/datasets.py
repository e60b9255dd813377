"""Data for `calibrate`, `train` and `unfuse`: samples, global batches, and a replica's piece."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import logging
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import ModelFileError, SyncBNError, UsageError
from syncbn_convert.runtime.array_files import columns_of
from syncbn_convert.runtime.fitting import InputSpec, check_lengths, fit_all

Array = npt.NDArray[Any]
Samples = Mapping[str, Array]
Data = Any
"""See `open_dataset`."""

_CHUNK_BYTES = 32 * 2**20
_DIGESTED_BYTES = 64 * 2**20
_DIGESTED_SAMPLES = 64
_KINDS = (
    "an .npz file, a folder of them, a folder of .npy files named as the inputs, or "
    "package.module:name of a dictionary of arrays, of something with __len__ and __getitem__, or "
    "of a function or iterable that yields dictionaries"
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples of a model's inputs, in a fixed order.

    Attributes:
        name: What to call it in messages.
        size: Number of samples; None if only running through them tells.
        chunks: Yields the samples in pieces of any size, from the start at each call.
        take: Returns the samples of some indices; None where they come only one after the other.
        column: Returns one input of all samples; None where they are not in arrays.
        notes: What a user should know of how they are taken.
        endless: Whether a second pass goes on where the first one ended.
    """

    name: str
    size: int | None
    chunks: Callable[[], Iterator[dict[str, Array]]]
    take: Callable[[Array], dict[str, Array]] | None = None
    column: Callable[[str], Any] | None = None
    notes: tuple[str, ...] = ()
    endless: bool = False

    def digest(self) -> str | None:
        """Return a digest of what the samples hold; None where they have to be run through.

        Of more than 64 MiB, it is one of 64 samples spread over all.
        """
        if self.take is None or self.size is None:
            return None
        found = hashlib.blake2b(f"{self.size}".encode(), digest_size=16)
        spread = np.unique(np.linspace(0, max(self.size - 1, 0), _DIGESTED_SAMPLES).astype(int))
        some = self.take(spread[: self.size])
        row = sum(array.nbytes for array in some.values()) / max(len(spread), 1)
        pieces = self.chunks() if row * self.size <= _DIGESTED_BYTES else iter([some])
        parts = {name: hashlib.blake2b(digest_size=16) for name in some}
        for piece_of_all in pieces:
            for name, array in piece_of_all.items():
                parts[name].update(np.ascontiguousarray(array).tobytes())
        for name, part in sorted(parts.items()):
            described = f"{name} {some[name].dtype} {some[name].shape[1:]} {part.hexdigest()}"
            found.update(described.encode())
        return found.hexdigest()


def open_dataset(source: Data, inputs: Sequence[str | InputSpec]) -> Dataset:
    """Open data for the inputs named.

    Args:
        source: An `.npz` file or a folder of them, with arrays named as the inputs (first axis:
            samples; further arrays are ignored); a folder of `.npy` files named so, which stay on
            the disk; a dictionary of such arrays; something with `__len__` and `__getitem__`, whose
            items are samples: dictionaries, or tuples in the order of the inputs; an iterable, or a
            function that returns one, of dictionaries of arrays of several samples; or
            `package.module:name` of any of these.
        inputs: Names of the model's inputs, or what it takes for them.

    Raises:
        ModelFileError: if a file is missing, malformed, or lacks an input, or an array does not
            fit.
        UsageError: if `source` is none of these.
    """
    specs = [InputSpec(given) if isinstance(given, str) else given for given in inputs]
    if not isinstance(source, str | Path):
        return _from_object(source, getattr(source, "__name__", type(source).__name__), specs)
    path = Path(source)
    if path.exists() or ":" not in str(source):
        columns, held = columns_of(path, [spec.name for spec in specs])
        return _from_columns(str(path), columns, specs, held)
    return _from_object(_import(str(source)), str(source), specs)


def _from_object(source: Any, name: str, specs: Sequence[InputSpec]) -> Dataset:
    if callable(source) and not _is_indexed(source):
        return _from_function(source, name, specs)
    if isinstance(source, Mapping):
        columns = {key: np.asarray(value) for key, value in source.items()}
        return _from_columns(name, columns, specs, list(columns))
    if _is_indexed(source):
        return _from_indexed(source, name, specs)
    if isinstance(source, Iterable) and not isinstance(source, np.ndarray | bytes):
        return _from_iterable(lambda: source, name, specs, endless=iter(source) is source)
    raise UsageError(f"data '{name}' is {type(source).__name__}; give {_KINDS}")


def _is_indexed(source: Any) -> bool:
    """Whether something holds samples by index; a list holds dictionaries of several samples."""
    plain = isinstance(source, Mapping | list | tuple | np.ndarray | str | bytes)
    return hasattr(source, "__len__") and hasattr(source, "__getitem__") and not plain


def _from_columns(
    name: str, columns: Mapping[str, Any], specs: Sequence[InputSpec], held: Iterable[str]
) -> Dataset:
    check_lengths({spec.name: columns.get(spec.name) for spec in specs}, name, held)
    own = {spec.name: columns[spec.name] for spec in specs}
    for spec in specs:
        spec.check(own[spec.name].shape, own[spec.name].dtype, name)
    notes = [spec.remark(own[spec.name].dtype) for spec in specs]
    for spec in specs:
        if isinstance(own[spec.name], np.ndarray):
            own[spec.name] = spec.fit(own[spec.name], name)
    size = next(iter(own.values())).shape[0]

    def take(index: Any) -> dict[str, Array]:
        return fit_all(specs, {key: column[index] for key, column in own.items()}, name)

    def chunks() -> Iterator[dict[str, Array]]:
        row = sum(c.dtype.itemsize * int(np.prod(c.shape[1:])) for c in own.values())
        count = max(_CHUNK_BYTES // max(row, 1), 1)
        for start in range(0, size, count):
            yield take(slice(start, start + count))

    return Dataset(name, size, chunks, take, own.__getitem__, tuple(filter(None, notes)))


def _from_indexed(source: Any, name: str, specs: Sequence[InputSpec]) -> Dataset:
    """Open something whose items are samples, such as a dataset of PyTorch or Hugging Face."""
    size = len(source)

    def take(index: Any) -> dict[str, Array]:
        with _blamed(name):
            rows = [_as_sample(source[int(at)], name, specs) for at in index]
        arrays = {
            spec.name: np.stack([np.asarray(row[spec.name]) for row in rows]) for spec in specs
        }
        return fit_all(specs, arrays, name)

    def chunks() -> Iterator[dict[str, Array]]:
        for start in range(0, size, 256):
            yield take(np.arange(start, min(start + 256, size)))

    if size:
        take(np.zeros(1, np.int64))
    return Dataset(name, size, chunks, take)


def _as_sample(item: Any, name: str, specs: Sequence[InputSpec]) -> Mapping[str, Any]:
    """Return a sample, or several, by name of input."""
    if isinstance(item, tuple | list):
        if len(item) != len(specs):
            wanted = ", ".join(f"'{spec.name}'" for spec in specs)
            raise UsageError(
                f"data '{name}' yields {len(item)} arrays, and there are {wanted}; yield those in "
                "that order, or dictionaries"
            )
        return {spec.name: value for spec, value in zip(specs, item, strict=True)}
    if not isinstance(item, Mapping):
        raise UsageError(
            f"data '{name}' yields {type(item).__name__}; yield dictionaries of arrays, or tuples "
            "in the order of the inputs"
        )
    missing = [spec.name for spec in specs if spec.name not in item]
    if missing:
        raise ModelFileError(
            f"{name}: has no array '{missing[0]}' for that input of the model; it holds "
            f"{', '.join(map(str, item)) or 'none'}"
        )
    return item


def _from_function(function: Callable[[], Any], name: str, specs: Sequence[InputSpec]) -> Dataset:
    try:
        unasked = isinstance(function, type)
        made = function() if unasked else None
    except Exception as error:
        raise UsageError(
            f"data '{name}' cannot be made ({type(error).__name__}: {error}); give an object"
        ) from error
    if unasked:
        return _from_object(made, name, specs)
    return _from_iterable(function, name, specs)


def _from_iterable(
    start: Callable[[], Iterable[Any]],
    name: str,
    specs: Sequence[InputSpec],
    *,
    endless: bool = False,
) -> Dataset:
    def chunks() -> Iterator[dict[str, Array]]:
        with _blamed(name):
            for item in start():
                given = _as_sample(item, name, specs)
                arrays = {spec.name: np.asarray(given[spec.name]) for spec in specs}
                yield fit_all(specs, arrays, name)

    return Dataset(name, None, chunks, endless=endless)


@contextlib.contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Turn what somebody's data raises into an error that names it."""
    try:
        yield
    except SyncBNError:
        raise
    except Exception as error:
        _logger.info("data '%s' raised", name, exc_info=True)
        raise UsageError(
            f"data '{name}' raised {type(error).__name__}: {error}; correct the function"
        ) from error


def global_batches(
    dataset: Dataset, batch_size: int, shuffled: ShuffleBuffer | None = None
) -> Iterator[dict[str, Array]]:
    """Yield batches of `batch_size` samples; the last one may be smaller."""
    rest: dict[str, Array] = {}
    for chunk in dataset.chunks() if shuffled is None else shuffled.over(dataset.chunks()):
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


class ShuffleBuffer:
    """Shuffles what comes one after the other, within a buffer.

    Args:
        size: Samples that it holds; what comes in is mixed with them, and what is too many leaves
            in random order.
        seed: Of numpy's PCG64, which draws.
    """

    def __init__(self, size: int, seed: Sequence[int]) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)

    def over(self, chunks: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Yield the samples of all chunks once, in another order."""
        held: dict[str, Array] = {}
        for chunk in chunks:
            joined = (
                {name: np.concatenate([held[name], array]) for name, array in chunk.items()}
                if held
                else chunk
            )
            count = _count(joined)
            if count <= self._size:
                held = joined
                continue
            order = self._random.permutation(count)
            out, kept = order[: count - self._size], order[count - self._size :]
            yield {name: array[out] for name, array in joined.items()}
            held = {name: array[kept] for name, array in joined.items()}
        if held and _count(held):
            order = self._random.permutation(_count(held))
            yield {name: array[order] for name, array in held.items()}


def checksum(batch: Samples) -> int:
    """Return a CRC-32 of the arrays of a batch, whatever their names' order."""
    value = 0
    for name in sorted(batch):
        value = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), value)
    return value


def piece(batch: Samples, rank: int, size: int) -> dict[str, Array]:
    """Return one replica's share: consecutive samples, sizes that differ by at most one."""
    count = _count(batch)
    bounds = [count * index // size for index in (rank, rank + 1)]
    return {name: array[bounds[0] : bounds[1]] for name, array in batch.items()}


def _count(samples: Samples) -> int:
    return len(next(iter(samples.values())))


def _import(reference: str) -> Any:
    module_name, _, name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise UsageError(
            f"data '{reference}' is neither a file nor a name that can be imported "
            f"({type(error).__name__}: {error}); give {_KINDS}"
        ) from error
