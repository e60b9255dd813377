"""Inputs for a comparison: sizes of the dynamic dimensions, random values, user data."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.doors.npz import open_arrays
from syncbn_convert.errors import UsageError, VerificationError
from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.verification.interface import TensorSpec
from syncbn_convert.verification.likely_shapes import Dimension
from syncbn_convert.verification.tolerance import Array

Shapes = dict[str, tuple[int, ...]]

_BATCH_SIZES = (2, 5)
_OTHER_SIZES = (32, 48, 64, 96, 224)
_MOST_DATA_FILES = 4
_LARGEST_INDEX = 3
_IN_A_SEQUENCE = 3
_SEEDS_APART = 1000
_LARGEST_BYTE = 127
LARGEST_WHOLES = (None, 2, 1, 0)
"""Largest whole numbers to try, in order; None is 127 for bytes and else 3."""


@dataclasses.dataclass(frozen=True)
class Feed:
    """Inputs of one run.

    Attributes:
        label: Where they come from, for messages.
        arrays: Values by input name.
        whole: Names of inputs that hold whole numbers.
    """

    label: str
    arrays: dict[str, Array]
    whole: frozenset[str] = frozenset()


def size_attempts(
    inputs: Sequence[TensorSpec], fixed: Mapping[str, Sequence[int]]
) -> list[list[Shapes]]:
    """Return groups of input shapes to try, of which one each is wanted, the earlier the better.

    First axes take 2 in the first group and 5 in the second, and 1 as a last resort of the first.
    Other dynamic dimensions take sizes from 32 to 224, different ones before equal ones. Dimensions
    of one name have one size.

    Args:
        inputs: Inputs that must be fed.
        fixed: Shapes by input name that the user gave.

    Raises:
        UsageError: A shape in `fixed` is not one of the input.
        VerificationError: The rank of an input is unknown and no shape is given.
    """
    bound = _bind(inputs, fixed)
    dimensions = {spec.name: _keys(spec, fixed) for spec in inputs}
    free = [key for keys in dimensions.values() for key in keys if isinstance(key, str)]
    free = [key for key in dict.fromkeys(free) if key not in bound]
    first = {keys[0] for keys in dimensions.values() if keys and keys[0] in free}
    others = [key for key in free if key not in first]
    groups = []
    for number, batch in enumerate(_BATCH_SIZES if free else _BATCH_SIZES[:1]):
        batches = (batch, 1) if first and number == 0 else (batch,)
        groups.append(
            [
                _shapes(dimensions, {**bound, **dict.fromkeys(first, size), **sizes})
                for size in batches
                for sizes in _other_sizes(others, number)
            ]
        )
    return groups


def random_feed(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    largest: int | None = None,
) -> Feed:
    """Return normal floats, small whole numbers that are not negative, and booleans.

    Raises:
        VerificationError: An input has a type for which no values can be made up.
    """
    arrays = {spec.name: _random_value(spec, shapes[spec.name], seed, largest) for spec in inputs}
    sizes = ", ".join(f"{name}[{','.join(map(str, s))}]" for name, s in shapes.items())
    return Feed(label=f"{sizes or 'no inputs'}, seed {seed}", arrays=arrays, whole=_whole(inputs))


def other_feed(inputs: Sequence[TensorSpec], feed: Feed, seed: int) -> Feed:
    """Return a feed of the same sizes: other floats and booleans, and the same whole numbers.

    A model may refuse other whole numbers, such as those beyond a table.
    """
    shapes = {name: array.shape for name, array in feed.arrays.items()}
    other = random_feed(inputs, shapes, seed)
    same = {name: feed.arrays[name] for name in feed.whole}
    return dataclasses.replace(other, arrays={**other.arrays, **same})


def overriding_arrays(model: ir.Model, names: Sequence[str], seed: int) -> dict[str, Array]:
    """Return other values for overridable initializers, positive where the given ones are.

    Every element is scaled by a random factor from 0.5 to 1.5; zeros become 0.05 to 0.15.
    """
    arrays = {}
    for name in names:
        tensor = model.graph.initializers[name].const_value
        if tensor is not None and is_floating(tensor.numpy().dtype):
            values = tensor.numpy()
            factors = _generator(name, seed).uniform(0.5, 1.5, values.shape)
            wide = values.astype(np.float64)
            arrays[name] = (np.where(wide == 0, 0.1, wide) * factors).astype(values.dtype)
    return arrays


def data_feeds(inputs: Sequence[TensorSpec], options: VerifyOptions) -> Iterator[Feed]:
    """Yield the first two batches of up to four files of the user's data.

    A batch is as large as the first static first axis of the inputs, else 2 and then 5 samples.

    Raises:
        UsageError: The data is not there, or lacks an input.
        ModelFileError: It is not `.npz` of plain arrays.
    """
    for path in _data_files(options.data):
        sizes = _batch_sizes(inputs, options.input_shapes)
        arrays = {spec.name: _samples(path, spec, sum(sizes)) for spec in inputs}
        start = 0
        for size in sizes:
            batch = {name: array[start : start + size] for name, array in arrays.items()}
            if all(len(part) for part in batch.values()):
                label = f"{path}, samples {start} to {start + size - 1}"
                yield Feed(label=label, arrays=batch, whole=_whole(inputs))
            start += size


def _whole(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    return frozenset(spec.name for spec in inputs if spec.whole)


def _bind(inputs: Sequence[TensorSpec], fixed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    specs = {spec.name: spec for spec in inputs}
    bound: dict[str, int] = {}
    for name, shape in fixed.items():
        if name not in specs:
            raise UsageError(f"input shape for '{name}': the model's inputs are {list(specs)}")
        dimensions = specs[name].dimensions
        if dimensions is None:
            continue
        if len(dimensions) != len(shape):
            raise UsageError(f"input {specs[name]}: shape {list(shape)} has another rank")
        for dimension, size in zip(dimensions, shape, strict=True):
            wanted = bound.get(dimension, size) if isinstance(dimension, str) else dimension
            if wanted not in (None, size):
                raise UsageError(
                    f"input {specs[name]}: shape {list(shape)} contradicts size {wanted}"
                )
            if isinstance(dimension, str):
                bound[dimension] = size
    return bound


def _keys(spec: TensorSpec, fixed: Mapping[str, Sequence[int]]) -> tuple[int | str, ...]:
    if spec.container == "map":
        return ()
    if spec.name in fixed:
        return tuple(fixed[spec.name])
    dimensions = spec.likely if spec.dimensions is None else spec.dimensions
    if dimensions is None:
        raise VerificationError(
            f"input {spec} has no rank: give its shape with --input-shape {spec.name}:DIMS"
        )
    return tuple(_key(spec.name, axis, size) for axis, size in enumerate(dimensions))


def _key(name: str, axis: int, dimension: Dimension) -> int | str:
    return f"{name}[{axis}]" if dimension is None else dimension


def _other_sizes(keys: Sequence[str], start: int) -> list[dict[str, int]]:
    count = len(_OTHER_SIZES)
    order = [(start + i) % count for i in range(count)]
    different = [{key: _OTHER_SIZES[(i + k) % count] for k, key in enumerate(keys)} for i in order]
    attempts = different + [dict.fromkeys(keys, _OTHER_SIZES[i]) for i in order]
    return [attempt for i, attempt in enumerate(attempts) if attempt not in attempts[:i]]


def _shapes(dimensions: Mapping[str, tuple[int | str, ...]], sizes: Mapping[str, int]) -> Shapes:
    return {
        name: tuple(sizes[key] if isinstance(key, str) else key for key in keys)
        for name, keys in dimensions.items()
    }


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _random_value(spec: TensorSpec, shape: Sequence[int], seed: int, largest: int | None) -> Any:
    """Return what is fed: a sequence holds several tensors, a map one number for each key."""
    if spec.container == "map":
        numbers = _random_array(spec, [len(spec.keys)], seed, largest)
        return dict(zip(spec.keys, numbers.tolist(), strict=True))
    if spec.container == "sequence":
        seeds = range(seed, seed + _IN_A_SEQUENCE * _SEEDS_APART, _SEEDS_APART)
        return [_random_array(spec, shape, own, largest) for own in seeds]
    return _random_array(spec, shape, seed, largest)


def _random_array(spec: TensorSpec, shape: Sequence[int], seed: int, largest: int | None) -> Array:
    random = _generator(spec.name, seed)
    dtype = None if spec.dtype in (None, ir.DataType.STRING) else spec.dtype.numpy()
    if dtype is not None and is_floating(dtype) and not spec.whole:
        return random.standard_normal(shape).astype(dtype)
    if dtype is not None and dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    if dtype is not None and spec.whole:
        if largest is None:
            largest = _LARGEST_BYTE if dtype.itemsize == 1 else _LARGEST_INDEX
        return random.integers(0, largest, shape, endpoint=True).astype(dtype)
    raise VerificationError(
        f"input {spec}: no random values can be made for this type",
        cures=["give --data", "pass --no-verify"],
    )


def _data_files(data: Path | None) -> list[Path]:
    if data is None:
        return []
    files = sorted(data.glob("*.npz")) if data.is_dir() else [data]
    files = [file for file in files if file.is_file()]
    if not files:
        raise UsageError(f"{data}: no .npz file there; --data takes one or a folder of them")
    return files[:_MOST_DATA_FILES]


def _samples(path: Path, spec: TensorSpec, rows: int) -> Array:
    if spec.container:
        raise UsageError(f"{path}: input {spec} takes no array; compare without --data")
    held = open_arrays(path)
    if spec.name not in held:
        raise UsageError(f"{path}: no array for input '{spec.name}', only {list(held)}")
    stored = held[spec.name]
    if not stored.shape:
        raise UsageError(f"{path}: array '{spec.name}' does not fit input {spec}")
    array = stored.first(rows)
    dtype = None if spec.dtype is None else spec.dtype.numpy()
    if dtype is None or array.ndim == 0:
        raise UsageError(f"{path}: array '{spec.name}' does not fit input {spec}")
    if is_floating(array.dtype) and is_floating(dtype):
        return array.astype(dtype)
    if array.dtype != dtype:
        raise UsageError(f"{path}: array '{spec.name}' is {array.dtype}, input {spec} is not")
    return array


def _batch_sizes(
    inputs: Sequence[TensorSpec], fixed: Mapping[str, Sequence[int]]
) -> tuple[int, ...]:
    shapes = [fixed.get(spec.name, spec.dimensions) for spec in inputs]
    static = [shape[0] for shape in shapes if shape and isinstance(shape[0], int)]
    return (static[0], static[0]) if static else _BATCH_SIZES
