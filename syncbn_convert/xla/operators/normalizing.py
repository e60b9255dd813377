"""Normalization by moving statistics, by those of a piece, or by those of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.sample_axes import Layout
from syncbn_convert.xla.translations import Array, Call, operator


def _first_output(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    return [sample_axes.leading(at, outputs)[0], *[None] * (len(outputs) - 1)]


@operator("BatchNormalization", samples=_first_output)
def batch_normalization(
    at: Call, x: Array, scale: Array, bias: Array, mean: Array, var: Array
) -> Any:
    """By moving statistics; or in training mode by those of this replica's piece."""
    dtype, epsilon = _at_least_float32(x.dtype), at.real("epsilon", 1e-5)
    wide = x.astype(dtype)
    if not at.integer("training_mode", 0):
        return _normalized(wide, scale, bias, mean, var, epsilon).astype(x.dtype)
    axes = (0, *range(2, x.ndim))
    weights: Array = np.ones((), dtype)
    count: Array = np.asarray(math.prod(x.shape) // max(x.shape[1], 1), dtype)
    mask = at.mask(0)
    if mask is not None:
        weights = mask.astype(dtype)
        count = jnp.maximum(weights.sum() * math.prod(x.shape[2:]), 1).astype(dtype)
    own_mean = (wide * weights).sum(axes) / count
    centered = (wide - _channels(own_mean, x.ndim)) * weights
    own_var = jnp.square(centered).sum(axes) / count
    y = _normalized(wide, scale, bias, own_mean, own_var, epsilon).astype(x.dtype)
    momentum = np.asarray(at.real("momentum", 0.9), dtype)
    moving = [
        (old.astype(dtype) * momentum + lax.stop_gradient(new) * (1 - momentum)).astype(old.dtype)
        for old, new in ((mean, own_mean), (var, own_var))
    ]
    return (y, *moving)[: max(len(at.node.outputs), 1)]


def normalized(x: Array, norm: Any, given: Any) -> Array:
    """Return X normalized by moving statistics, along the channel axis of `norm`."""
    dtype = _at_least_float32(x.dtype)
    epsilon = np.asarray(np.float32(norm.epsilon), dtype)
    slope = lax.rsqrt(given.var.astype(dtype) + epsilon) * given.scale.astype(dtype)
    centered = x.astype(dtype) - norm.spread(given.mean.astype(dtype), x.ndim)
    y = centered * norm.spread(slope, x.ndim) + norm.spread(given.bias.astype(dtype), x.ndim)
    return y.astype(x.dtype)


def _normalized(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float
) -> Array:
    dtype = x.dtype
    inverse = lax.rsqrt(var.astype(dtype) + np.asarray(epsilon, dtype)) * scale.astype(dtype)
    centered = x - _channels(mean.astype(dtype), x.ndim)
    return centered * _channels(inverse, x.ndim) + _channels(bias.astype(dtype), x.ndim)


def _channels(values: Array, rank: int) -> Array:
    return values.reshape(-1, *[1] * (rank - 2))


def _at_least_float32(dtype: Any) -> np.dtype[Any]:
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def _stash(at: Call, x: Array) -> np.dtype[Any]:
    given = at.dtype(at.integer("stash_type", int(ir.DataType.FLOAT)))
    return np.dtype(np.float64) if x.dtype == np.float64 else given


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """Return what has mean 0 and variance 1 over the axes, the mean, and the inverse deviation."""
    mean = x.mean(axes, keepdims=True, dtype=x.dtype)
    centered = x - mean
    var = jnp.square(centered).mean(axes, keepdims=True, dtype=x.dtype)
    inverse = lax.rsqrt(var + np.asarray(epsilon, x.dtype))
    return centered * inverse, mean, inverse


@operator("LayerNormalization", samples=sample_axes.along_last)
def layer_normalization(at: Call, x: Array, scale: Array, bias: Array | None = None) -> Any:
    """Over the last axes; scale and bias may broadcast."""
    axis, dtype = at.integer("axis", -1) % x.ndim, _stash(at, x)
    axes = tuple(range(axis, x.ndim))
    normal, mean, inverse = _standardized(x.astype(dtype), axes, at.real("epsilon", 1e-5))
    y = normal.astype(x.dtype) * scale.astype(x.dtype)
    y = y if bias is None else y + bias.astype(x.dtype)
    return (y, mean, inverse)[: max(len(at.node.outputs), 1)]


@operator("RMSNormalization", samples=sample_axes.along_last)
def root_mean_square_normalization(at: Call, x: Array, scale: Array) -> Array:
    """Over the last axes."""
    axes = tuple(range(at.integer("axis", -1) % x.ndim, x.ndim))
    wide = x.astype(_stash(at, x))
    square = jnp.square(wide).mean(axes, keepdims=True, dtype=wide.dtype)
    inverse = lax.rsqrt(square + np.asarray(at.real("epsilon", 1e-5), wide.dtype))
    return (wide * inverse).astype(x.dtype) * scale.astype(x.dtype)


@operator("InstanceNormalization", samples=sample_axes.leading)
def instance_normalization(at: Call, x: Array, scale: Array, bias: Array) -> Array:
    """Over the pixels of each channel."""
    wide = x.astype(_at_least_float32(x.dtype))
    normal, _, _ = _standardized(wide, tuple(range(2, x.ndim)), at.real("epsilon", 1e-5))
    found = normal * _channels(scale.astype(wide.dtype), x.ndim)
    return (found + _channels(bias.astype(wide.dtype), x.ndim)).astype(x.dtype)


@operator("GroupNormalization", samples=sample_axes.leading)
def group_normalization(at: Call, x: Array, scale: Array, bias: Array) -> Array:
    """Over the pixels of a group of channels."""
    groups, dtype = at.integer("num_groups", 1), _stash(at, x)
    apart = x.astype(dtype).reshape(x.shape[0], groups, -1)
    normal, _, _ = _standardized(apart, (2,), at.real("epsilon", 1e-5))
    together = normal.reshape(x.shape).astype(x.dtype)
    repeats = x.shape[1] // scale.shape[0]
    slope, offset = (jnp.repeat(value, repeats) for value in (scale, bias))
    found = together * _channels(slope.astype(x.dtype), x.ndim)
    return found + _channels(offset.astype(x.dtype), x.ndim)


@operator("LpNormalization", kind="wide", samples=sample_axes.along(-1))
def lp_normalization(at: Call, x: Array) -> Array:
    """A norm of zeros stays zero."""
    axis, power = at.integer("axis", -1), at.integer("p", 2)
    size = (jnp.abs(x) if power == 1 else x * x).sum(axis, keepdims=True, dtype=x.dtype)
    positive = size > 0
    safe = jnp.where(positive, size, 1)
    return jnp.where(positive, x / (safe if power == 1 else jnp.sqrt(safe)), 0).astype(x.dtype)


@operator("LRN", kind="wide", samples=sample_axes.leading)
def local_response_normalization(at: Call, x: Array) -> Array:
    """Over neighbouring channels."""
    size = at.integer("size", 1)
    low = (size - 1) // 2
    pads = [(0, 0), (low, size - 1 - low), *[(0, 0)] * (x.ndim - 2)]
    window = (1, size, *[1] * (x.ndim - 2))
    total = lax.reduce_window(x * x, np.zeros((), x.dtype), lax.add, window, (1,) * x.ndim, pads)
    share = np.asarray(at.real("alpha", 1e-4) / size, x.dtype)
    base = np.asarray(at.real("bias", 1.0), x.dtype) + share * total
    return x / base ** np.asarray(at.real("beta", 0.75), x.dtype)


@operator("MeanVarianceNormalization", kind="wide")
def mean_variance_normalization(at: Call, x: Array) -> Array:
    """Over any axes."""
    axes = tuple(at.ints("axes") or (0, 2, 3))
    centered = x - x.mean(axes, keepdims=True, dtype=x.dtype)
    var = jnp.square(centered).mean(axes, keepdims=True, dtype=x.dtype)
    return centered / (jnp.sqrt(var) + np.asarray(1e-9, x.dtype))
