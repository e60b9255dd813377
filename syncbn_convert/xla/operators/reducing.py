"""Reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.sample_axes import Layout, masked
from syncbn_convert.xla.translations import Array, Call, operator


def _placed(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    axes = _axes(at)
    if axes is None:
        return [at.layouts[0]]
    return [sample_axes.reduced(axes, bool(at.integer("keepdims", 1)), at.layouts[0])] * len(
        outputs
    )


def _axes(at: Call) -> list[int] | None:
    """Return the axes; None where there are none, and the input stays as it is."""
    rank = np.ndim(at.inputs[0])
    axes = at.known_ints(1, "axes")
    if not axes:
        return None if at.integer("noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


@operator(
    "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    kind="wide", samples=_placed, known=(1,),
)  # fmt: skip
def reduce_sum(at: Call, value: Array, *_: Array) -> Array:
    """Of the elements, their magnitudes or squares; then the root or the logarithm."""
    del value
    x, kind = masked(at, 0, 0), at.node.op_type
    if kind == "ReduceL1":
        x = at.xp.abs(x)
    elif kind in ("ReduceL2", "ReduceSumSquare"):
        x = x * x
    axes = _axes(at)
    if axes is not None:
        keep = bool(at.integer("keepdims", 1))
        x = at.xp.sum(x, axis=tuple(axes), keepdims=keep, dtype=x.dtype)
    if kind == "ReduceLogSum":
        return at.xp.log(x)
    return _root(x) if kind == "ReduceL2" else x


def _root(square: Array) -> Array:
    """Return the root, whose slope is taken as 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0).astype(square.dtype)


@operator("ReduceMean", kind="wide", samples=_placed, known=(1,))
def reduce_mean(at: Call, value: Array, *_: Array) -> Array:
    """Of the samples that are there."""
    axes = _axes(at)
    if axes is None:
        return value
    keep, layout = bool(at.integer("keepdims", 1)), at.layouts[0]
    total = at.xp.sum(masked(at, 0, 0), axis=tuple(axes), keepdims=keep, dtype=value.dtype)
    count: Array = np.asarray(np.prod([value.shape[axis] for axis in axes]), value.dtype)
    if at.run.weights is not None and layout is not None and layout.axis in axes:
        real = at.run.weights.sum().astype(value.dtype)
        count = jnp.maximum(real, 1) * (count / np.asarray(at.run.weights.size, value.dtype))
    return (total / count).astype(value.dtype)


@operator("ReduceMax", "ReduceMin", samples=_placed, known=(1,))
def reduce_extreme(at: Call, value: Array, *_: Array) -> Array:
    """Elements that tie share the gradient evenly."""
    axes = _axes(at)
    if axes is None:
        return value
    largest = at.node.op_type == "ReduceMax"
    keep = bool(at.integer("keepdims", 1))
    if at.xp is np and value.size:
        return (value.max if largest else value.min)(axis=tuple(axes), keepdims=keep)
    x = masked(at, 0, _end(value, lowest=largest))
    if x.dtype == np.bool_:
        return (jnp.any if largest else jnp.all)(x, axis=tuple(axes), keepdims=keep)
    found = (lax.reduce_max if largest else lax.reduce_min)(jnp.asarray(x), sorted(axes))
    return jnp.expand_dims(found, sorted(axes)) if keep else found


def _end(value: Array, *, lowest: bool) -> float | int | bool:
    if value.dtype == np.bool_:
        return not lowest
    if jnp.issubdtype(value.dtype, np.floating):
        return -np.inf if lowest else np.inf
    limits = np.iinfo(value.dtype)
    return int(limits.min if lowest else limits.max)


@operator("ReduceProd", kind="wide", samples=_placed, known=(1,))
def reduce_product(at: Call, value: Array, *_: Array) -> Array:
    """Exact with zeros among the factors."""
    axes = _axes(at)
    if axes is None:
        return value
    keep = bool(at.integer("keepdims", 1))
    return at.xp.prod(masked(at, 0, 1), axis=tuple(axes), keepdims=keep, dtype=value.dtype)


@operator("ReduceLogSumExp", kind="wide", samples=_placed, known=(1,))
def reduce_log_sum_exp(at: Call, value: Array, *_: Array) -> Array:
    """Without overflow."""
    axes = _axes(at)
    if axes is None:
        return value
    keep = bool(at.integer("keepdims", 1))
    return jax.nn.logsumexp(masked(at, 0, -np.inf), axis=tuple(axes), keepdims=keep)


@operator("Softmax", "LogSoftmax", kind="wide", samples=sample_axes.along(-1))
def softmax(at: Call, value: Array) -> Array:
    """Any axis."""
    function = jax.nn.softmax if at.node.op_type == "Softmax" else jax.nn.log_softmax
    return function(value, axis=at.integer("axis", -1))


@operator("Hardmax", samples=sample_axes.along(-1))
def hardmax(at: Call, value: Array) -> Array:
    """One at the first largest element."""
    axis = at.integer("axis", -1) % value.ndim
    found = jnp.argmax(value, axis)
    return jax.nn.one_hot(found, value.shape[axis], dtype=value.dtype, axis=axis)
