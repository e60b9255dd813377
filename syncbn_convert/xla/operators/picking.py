"""Operators that pick elements or put them somewhere, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.sample_axes import Layout
from syncbn_convert.xla.translations import Array, Call, operator


@operator("Slice", samples=sample_axes.untouched, known=(1, 2, 3, 4))
def slice_(at: Call, value: Array, *_: Array) -> Array:
    """Bounds and steps that are known."""
    starts, ends = at.known_ints(1, "starts"), at.known_ints(2, "ends")
    assert starts is not None
    assert ends is not None
    axes = at.known_ints(3, "axes") or list(range(len(starts)))
    steps = at.known_ints(4) or [1] * len(starts)
    index = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis % value.ndim] = _python_slice(start, end, step, value.shape[axis])
    return value[tuple(index)]


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """Return a slice of Python, for which the end -1 would be the last element."""
    if step > 0:
        return slice(start, end, step)
    stop = end + size if end < 0 else end
    return slice(start, stop if stop >= 0 else None, step)


@operator("Pad", samples=sample_axes.untouched, known=(1, 3))
def pad(at: Call, value: Array, *_: Array) -> Array:
    """All modes, negative pads too."""
    given = at.known_ints(1, "pads")
    assert given is not None
    axes = [axis % value.ndim for axis in at.known_ints(3) or range(value.ndim)]
    pairs = [(0, 0)] * value.ndim
    for place, axis in enumerate(axes):
        pairs[axis] = (given[place], given[place + len(axes)])
    mode = at.text("mode", "constant")
    if mode == "constant":
        fill = at.inputs[2] if len(at.inputs) > 2 else None
        filling = (
            jnp.zeros((), value.dtype) if fill is None else fill.reshape(()).astype(value.dtype)
        )
        return lax.pad(value, filling, [(low, high, 0) for low, high in pairs])
    cropped = value[
        tuple(
            slice(max(-low, 0), size - max(-high, 0))
            for (low, high), size in zip(pairs, value.shape, strict=True)
        )
    ]
    widths = [(max(low, 0), max(high, 0)) for low, high in pairs]
    return at.xp.pad(cropped, widths, mode=mode)


@operator("Gather", samples=sample_axes.gathered)
def gather(at: Call, value: Array, indices: Array) -> Array:
    """Any axis; negative indices count from the end."""
    axis = at.integer("axis", 0) % value.ndim
    places = _from_start(indices, value.shape[axis])
    if at.xp is np:
        return np.take(value, places, axis)
    return jnp.take(value, places, axis, mode="clip")


@operator("GatherElements", samples=sample_axes.beside_axis)
def gather_elements(at: Call, value: Array, indices: Array) -> Array:
    """Any axis."""
    axis = at.integer("axis", 0) % value.ndim
    return value[_elements(indices, axis, value.shape[axis])]


def _samples_in_batch(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    data, indices = at.layouts[:2]
    if data is None and indices is not None and indices.axis < np.ndim(at.inputs[1]) - 1:
        return [indices] * len(outputs)
    shared = data == indices and data is not None
    if not shared or data is None or data.axis >= at.integer("batch_dims", 0):
        raise sample_axes.mixes(at)
    return [data] * len(outputs)


@operator("GatherND", samples=_samples_in_batch)
def gather_nd(at: Call, value: Array, indices: Array) -> Array:
    """Any batch_dims."""
    batch = at.integer("batch_dims", 0)
    rows = [
        np.arange(size).reshape([-1 if axis == own else 1 for axis in range(indices.ndim - 1)])
        for own, size in enumerate(value.shape[:batch])
    ]
    return value[(*rows, *_columns(indices, value.shape[batch:]))]


@operator("ScatterElements", samples=sample_axes.beside_axis)
def scatter_elements(at: Call, value: Array, indices: Array, updates: Array) -> Array:
    """All reductions."""
    axis = at.integer("axis", 0) % value.ndim
    return _scatter(at, value, _elements(indices, axis, value.shape[axis]), updates)


@operator("ScatterND")
def scatter_nd(at: Call, value: Array, indices: Array, updates: Array) -> Array:
    """All reductions."""
    return _scatter(at, value, tuple(_columns(indices, value.shape)), updates)


_REDUCTIONS = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}


def _scatter(at: Call, value: Array, places: Any, updates: Array) -> Array:
    reduction = at.text("reduction", "none")
    return getattr(jnp.asarray(value).at[places], _REDUCTIONS[reduction])(updates)


def _elements(indices: Array, axis: int, size: int) -> tuple[Array, ...]:
    """Return places of elements along one axis as indices of all."""
    grid = np.indices(indices.shape, sparse=True)
    places: list[Array] = list(grid)
    places[axis] = _from_start(indices, size)
    return tuple(places)


def _columns(indices: Array, sizes: Sequence[int]) -> list[Array]:
    depth = indices.shape[-1]
    return [
        _from_start(indices[..., level], size)
        for level, size in zip(range(depth), sizes, strict=False)
    ]


def _from_start(indices: Array, size: int) -> Array:
    if isinstance(indices, np.ndarray):
        return np.where(indices < 0, indices + size, indices)
    return jnp.where(indices < 0, indices + np.asarray(size, indices.dtype), indices)


@operator("TopK", samples=sample_axes.along(-1), known=(1,))
def top_k(at: Call, value: Array, _count: Array) -> tuple[Array, Array]:
    """A number that is known; in the order of size."""
    axis, count = at.integer("axis", -1), int((at.known_ints(1) or [0])[0])
    sign = 1 if at.integer("largest", 1) else -1
    found, places = lax.top_k(jnp.moveaxis(sign * value, axis, -1), count)
    return jnp.moveaxis(sign * found, -1, axis), jnp.moveaxis(places, -1, axis).astype(np.int64)


@operator("ArgMax", "ArgMin", samples=None)
def position(at: Call, value: Array) -> Array:
    """The first of equal elements, or the last."""
    axis = at.integer("axis", 0) % value.ndim
    last = at.integer("select_last_index", 0)
    looked = lax.rev(jnp.asarray(value), (axis,)) if last else value
    find = jnp.argmax if at.node.op_type == "ArgMax" else jnp.argmin
    found = find(looked, axis, keepdims=bool(at.integer("keepdims", 1)))
    return (value.shape[axis] - 1 - found if last else found).astype(np.int64)


def _time_beside(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    data = at.layouts[0]
    if data is None or data.inner != 1 or data.axis != at.integer("batch_axis", 1):
        raise sample_axes.mixes(at)
    return [data] * len(outputs)


@operator("ReverseSequence", samples=_time_beside)
def reverse_sequence(at: Call, value: Array, lengths: Array) -> Array:
    """Any axes."""
    time, batch = at.integer("time_axis", 0), at.integer("batch_axis", 1)
    shape = [1] * value.ndim
    shape[time] = -1
    steps = np.arange(value.shape[time]).reshape(shape)
    shape = [1] * value.ndim
    shape[batch] = -1
    ends = lengths.reshape(shape)
    places = jnp.where(steps < ends, ends - 1 - steps, steps)
    return jnp.take_along_axis(value, places, time)


@operator("Trilu", samples=sample_axes.leading, known=(1,))
def triangle(at: Call, value: Array, *_: Array) -> Array:
    """Upper and lower, any diagonal."""
    diagonal = int((at.known_ints(1) or [0])[0])
    return (at.xp.triu if at.integer("upper", 1) else at.xp.tril)(value, diagonal)


@operator("Compress", known=(1,))
def compress(at: Call, value: Array, _condition: Array) -> Array:
    """A condition that is known."""
    condition = at.known(1)
    assert condition is not None
    places = np.flatnonzero(condition)
    if "axis" not in at.attributes:
        return at.xp.take(value.reshape(-1), places, 0)
    return at.xp.take(value, places, at.integer("axis", 0))
