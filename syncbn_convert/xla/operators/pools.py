"""Pools over windows and over whole images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.operators.sliding_windows import Window, window_of, with_ceil
from syncbn_convert.xla.translations import Array, Call, operator


@operator("GlobalAveragePool", kind="wide", samples=sample_axes.leading)
def global_average_pool(at: Call, x: Array) -> Array:
    """Each pixel gets an equal share."""
    del at
    return jnp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype)


@operator("GlobalMaxPool", samples=sample_axes.leading)
def global_max_pool(at: Call, x: Array) -> Array:
    """Pixels that hold the maximum together get equal shares."""
    del at
    axes = list(range(2, x.ndim))
    return jnp.expand_dims(lax.reduce_max(jnp.asarray(x), axes), axes)


@operator("GlobalLpPool", kind="wide", samples=sample_axes.leading)
def global_lp_pool(at: Call, x: Array) -> Array:
    """An image of zeros gets none."""
    power = at.integer("p", 2)
    total = (jnp.abs(x) ** power).sum(tuple(range(2, x.ndim)), keepdims=True)
    return _root(total, power)


@operator("MaxPool", samples=sample_axes.leading)
def max_pool(at: Call, x: Array) -> Array:
    """The first of the largest pixels gets it all; pixels that tie share where it is dilated."""
    window = window_of(at, x.shape[2:], at.ints("kernel_shape") or [])
    pads = with_ceil(window, x.shape[2:])
    lowest = -np.inf if jnp.issubdtype(x.dtype, np.floating) else int(np.iinfo(x.dtype).min)
    if all(gap == 1 for gap in window.dilations):
        return _over_windows(x, lowest, lax.max, window, pads)
    pieces = _elements(x, np.asarray(lowest, x.dtype), window, pads)
    return functools.reduce(jnp.maximum, pieces)


@operator("AveragePool", kind="wide", samples=sample_axes.leading)
def average_pool(at: Call, x: Array) -> Array:
    """Divided by the pixels of the window that count."""
    sizes = x.shape[2:]
    window = window_of(at, sizes, at.ints("kernel_shape") or [])
    total = _over_windows(x, 0.0, lax.add, window, with_ceil(window, sizes))
    counted = bool(at.integer("count_include_pad", 0))
    counts = [_counted(window, axis, size, counted) for axis, size in enumerate(sizes)]
    return total / functools.reduce(np.multiply, np.ix_(*counts)).astype(x.dtype)


@operator("LpPool", kind="wide", samples=sample_axes.leading)
def lp_pool(at: Call, x: Array) -> Array:
    """A window of zeros gets none."""
    window = window_of(at, x.shape[2:], at.ints("kernel_shape") or [])
    power = at.integer("p", 2)
    powers = jnp.abs(x) ** power
    total = _over_windows(powers, 0.0, lax.add, window, with_ceil(window, x.shape[2:]))
    return _root(total, power)


def _root(total: Array, power: int) -> Array:
    if power == 1:
        return total
    positive = total > 0
    return jnp.where(positive, jnp.where(positive, total, 1) ** (1 / power), 0).astype(total.dtype)


def _over_windows(
    x: Array, start: float, reduce: object, window: Window, pads: Sequence[tuple[int, int]]
) -> Array:
    if not x.size:
        return jnp.zeros((*x.shape[:2], *window.sizes), x.dtype)
    return lax.reduce_window(
        jnp.asarray(x),
        np.asarray(start, x.dtype),
        reduce,  # type: ignore[arg-type]
        (1, 1, *window.kernel),
        (1, 1, *window.strides),
        [(0, 0), (0, 0), *pads],
        window_dilation=(1, 1, *window.dilations),
    )


def _elements(
    x: Array, fill: Array, window: Window, pads: Sequence[tuple[int, int]]
) -> list[Array]:
    """Return the first elements of all windows, the second ones, and so on."""
    padded = lax.pad(jnp.asarray(x), fill, [(0, 0, 0), (0, 0, 0), *((*pair, 0) for pair in pads)])
    pieces = []
    for place in itertools.product(*map(range, window.kernel)):
        starts = [step * gap for step, gap in zip(place, window.dilations, strict=True)]
        ends = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, window.sizes, window.strides, strict=True)
        ]
        pieces.append(
            lax.slice(padded, (0, 0, *starts), (*x.shape[:2], *ends), (1, 1, *window.strides))
        )
    return pieces


def _counted(window: Window, axis: int, size: int, with_pads: bool) -> Array:
    """Return how many elements of each window count along an axis."""
    low, high = window.pads[axis]
    first, last = (-low, size + high) if with_pads else (0, size)
    starts = np.arange(window.sizes[axis]) * window.strides[axis] - low
    places = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
    return ((places >= first) & (places < last)).sum(1)
