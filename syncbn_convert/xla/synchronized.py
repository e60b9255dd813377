"""Normalization by statistics of the global batch, several nodes at a time.

Nodes that do not depend on one another send their statistics in one collective, forward and
backward. Local mean and variance are of the corrected two-pass algorithm (Chan, Golub, LeVeque,
1983): what the mean lacks by rounding is found in the second pass, and taken off both. Replicas are
merged in float64, by the moments; on a device that has none by Chan's formula for several sets,
which gathers means and variances and takes differences before it squares.

The gradient is that of `form/gradient_form.py`: with N the global count and sums over replicas,

    dX = scale * inv_std * (dY - sum(dY) / N - x^ * sum(dY * x^) / N)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from syncbn_convert.xla.sample_axes import Layout
from syncbn_convert.xla.traced_run import Run

Array = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """One node of a group.

    Attributes:
        axis: Of the channels, from 0 up.
        epsilon: Added to the variance.
        momentum: Share of the old moving statistic that an update keeps.
        unbiased: Whether the moving variance is that of N - 1.
        layout: Where the samples lie in X, where some are padding.
    """

    axis: int
    epsilon: float
    momentum: float
    unbiased: bool
    layout: Layout | None

    def spread(self, values: Array, rank: int) -> Array:
        """Return one value a channel in a shape that broadcasts to X."""
        return values.reshape([1] * self.axis + [-1] + [1] * (rank - self.axis - 1))

    def others(self, rank: int) -> tuple[int, ...]:
        """Return the axes that are summed over."""
        return tuple(axis for axis in range(rank) if axis != self.axis)


@dataclasses.dataclass(frozen=True)
class Operands:
    """What goes into a node: X, then scale, bias and moving statistics, each [C]."""

    x: Array
    scale: Array
    bias: Array
    mean: Array
    var: Array


@dataclasses.dataclass(frozen=True)
class Normalized:
    """What comes out of a node.

    Attributes:
        y: As X.
        mean: The next moving mean.
        var: The next moving variance.
        total: Global count, mean and population variance, [2C + 1], in the type of the wire.
    """

    y: Array
    mean: Array
    var: Array
    total: Array


def normalize(
    run: Run, norms: Sequence[Norm], operands: Sequence[Operands], group_size: int
) -> list[Normalized]:
    """Normalize with one collective, and one in the backward pass."""
    group = _Group(run, tuple(norms), group_size)
    arrays = [dataclasses.astuple(given) for given in operands]
    xs, scales, biases, means, variances = (tuple(column) for column in zip(*arrays, strict=True))
    ys, nexts, totals = _normalize(group, xs, scales, biases, (means, variances, run.weights))
    return [
        Normalized(y, mean, var, total)
        for y, (mean, var), total in zip(ys, nexts, totals, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Of one node: count (a scalar), mean and population variance [C]."""

    count: Array
    mean: Array
    var: Array


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    run: Run
    norms: tuple[Norm, ...]
    group_size: int

    def masks(self, xs: Sequence[Array], weights: Array | None) -> list[Array | None]:
        """Return 1 for what is real in each X, 0 for padding; None where all is real."""
        return [
            None
            if weights is None or norm.layout is None
            else norm.layout.spread(weights, x.ndim).astype(_stash(x))
            for norm, x in zip(self.norms, xs, strict=True)
        ]

    def merged(self, local: Sequence[_Moments]) -> list[_Moments]:
        """Return the moments of all replicas of the group."""
        axis = self.run.axis
        if axis is None:
            return list(local)
        groups = axis.groups(self.group_size)
        if not self.run.has_double:
            flat = jnp.concatenate([_flat(moments) for moments in local])
            gathered = lax.all_gather(flat, axis.name, axis_index_groups=groups)
            return [_chan(piece) for piece in _split(gathered, local)]
        payload = jnp.concatenate([_weighted(moments) for moments in local])
        total = lax.psum(payload, axis.name, axis_index_groups=groups)
        return [_from_sums(piece) for piece in _split(total, local)]

    def summed(self, sums: Sequence[Array]) -> list[Array]:
        """Return sums over the replicas of the group."""
        axis = self.run.axis
        if axis is None:
            return list(sums)
        flat = jnp.concatenate([value.reshape(-1).astype(self.run.wire) for value in sums])
        total = lax.psum(flat, axis.name, axis_index_groups=axis.groups(self.group_size))
        bounds = np.cumsum([value.size for value in sums])[:-1].tolist()
        pieces = jnp.split(total, bounds)
        return [piece.reshape(value.shape) for piece, value in zip(pieces, sums, strict=True)]


def _flat(moments: _Moments) -> Array:
    return jnp.concatenate([moments.count.reshape(1), moments.mean, moments.var])


def _weighted(moments: _Moments) -> Array:
    second = moments.var + jnp.square(moments.mean)
    count = moments.count.reshape(1)
    return jnp.concatenate([count, moments.mean * count, second * count])


def _split(values: Array, like: Sequence[_Moments]) -> list[Array]:
    bounds = np.cumsum([2 * moments.mean.size + 1 for moments in like])[:-1].tolist()
    return list(jnp.split(values, bounds, axis=-1))


def _from_sums(sums: Array) -> _Moments:
    count, channels = sums[0], (sums.size - 1) // 2
    divisor = jnp.maximum(count, 1)
    mean, second = sums[1 : channels + 1] / divisor, sums[channels + 1 :] / divisor
    return _Moments(count, mean, jnp.maximum(second - jnp.square(mean), 0))


def _chan(gathered: Array) -> _Moments:
    """Return the moments of several sets, [sets, 2C + 1], by differences of their means."""
    channels = (gathered.shape[-1] - 1) // 2
    counts = gathered[:, :1]
    means, variances = gathered[:, 1 : channels + 1], gathered[:, channels + 1 :]
    count = counts.sum()
    divisor = jnp.maximum(count, 1)
    first = means[jnp.argmax(counts[:, 0] > 0)]
    shift = (counts * (means - first)).sum(0) / divisor
    mean = first + shift
    apart = (means - first) - shift
    var = (counts * (variances + jnp.square(apart))).sum(0) / divisor
    return _Moments(count, mean, var)


def _stash(x: Array) -> np.dtype[Any]:
    return np.dtype(np.float64) if x.dtype == np.float64 else np.dtype(np.float32)


def _local(norm: Norm, x: Array, mask: Array | None, wire: np.dtype[Any]) -> _Moments:
    """Return the moments of this replica's piece, zeros where it holds no samples."""
    stash, axes = _stash(x), norm.others(x.ndim)
    wide = x.astype(stash)
    size = math.prod(x.shape[axis] for axis in axes)
    count: Array = jnp.asarray(size, wire)
    if mask is not None:
        layout = norm.layout
        assert layout is not None
        each = size // max(x.shape[layout.axis], 1)
        count = mask.sum().astype(wire) * np.asarray(each, wire)
    divisor = jnp.maximum(count, 1).astype(stash)
    rough = (wide if mask is None else wide * mask).sum(axes, dtype=stash) / divisor
    centered = wide - norm.spread(rough, x.ndim)
    if mask is not None:
        centered = centered * mask
    lack = centered.sum(axes, dtype=stash) / divisor
    square = jnp.square(centered).sum(axes, dtype=stash) / divisor
    var = jnp.maximum(square - jnp.square(lack), 0)
    return _Moments(count, rough.astype(wire) + lack.astype(wire), var.astype(wire))


def _moved(norm: Norm, found: _Moments, old: Array, new: Array, correct: Array | float) -> Array:
    """Return the next moving statistic; it stays where no degree of freedom is left."""
    wire = found.mean.dtype
    momentum = np.asarray(np.float32(norm.momentum), wire)
    moved = old.astype(wire) * momentum + new * correct * (1 - momentum)
    return jnp.where(found.count - int(norm.unbiased) > 0, moved, old.astype(wire)).astype(
        old.dtype
    )


def _forward(
    group: _Group,
    xs: tuple[Array, ...],
    scales: tuple[Array, ...],
    biases: tuple[Array, ...],
    rest: tuple[Any, ...],
) -> tuple[Any, Any]:
    means, variances, weights = rest
    with jax.enable_x64(True) if group.run.has_double else jax.enable_x64(False):
        masks = group.masks(xs, weights)
        local = [
            _local(norm, x, mask, group.run.wire)
            for norm, x, mask in zip(group.norms, xs, masks, strict=True)
        ]
        found = group.merged(local)
        ys, nexts, residuals = [], [], []
        for index, (norm, moments) in enumerate(zip(group.norms, found, strict=True)):
            x, stash = xs[index], _stash(xs[index])
            mean = moments.mean.astype(stash)
            epsilon = np.asarray(np.float32(norm.epsilon), moments.var.dtype)
            inverse = lax.rsqrt(moments.var + epsilon).astype(stash)
            slope = inverse * scales[index].astype(stash)
            centered = x.astype(stash) - norm.spread(mean, x.ndim)
            y = centered * norm.spread(slope, x.ndim)
            ys.append((y + norm.spread(biases[index].astype(stash), x.ndim)).astype(x.dtype))
            freedom = jnp.maximum(moments.count - int(norm.unbiased), 1)
            nexts.append(
                (
                    _moved(norm, moments, means[index], moments.mean, 1.0),
                    _moved(norm, moments, variances[index], moments.var, moments.count / freedom),
                )
            )
            share = (1 / jnp.maximum(moments.count, 1)).astype(stash)
            residuals.append((mean, inverse, share))
        totals = [_flat(moments) for moments in found]
    return (tuple(ys), tuple(nexts), tuple(totals)), (xs, scales, biases, rest, tuple(residuals))


def _backward(group: _Group, saved: Any, gradients: Any) -> Any:
    """Return the gradients of X, scale and bias; none flows through the moving statistics."""
    xs, scales, biases, rest, residuals = saved
    dys, _, _ = gradients
    with jax.enable_x64(True) if group.run.has_double else jax.enable_x64(False):
        masks = group.masks(xs, rest[2])
        normals, sums = [], []
        for norm, x, dy, (mean, inverse, _) in zip(group.norms, xs, dys, residuals, strict=True):
            stash = _stash(x)
            centered = x.astype(stash) - norm.spread(mean, x.ndim)
            normal = centered * norm.spread(inverse, x.ndim)
            wide, axes = dy.astype(stash), norm.others(x.ndim)
            normals.append((wide, normal))
            sums += [wide.sum(axes, dtype=stash), (wide * normal).sum(axes, dtype=stash)]
        totals = group.summed(sums)
        dxs, dscales, dbiases = [], [], []
        for index, norm in enumerate(group.norms):
            x, (_, inverse, share) = xs[index], residuals[index]
            stash, (wide, normal) = _stash(x), normals[index]
            of_dy, of_product = (
                norm.spread(total.astype(stash) * share, x.ndim)
                for total in totals[2 * index : 2 * index + 2]
            )
            slope = norm.spread(inverse * scales[index].astype(stash), x.ndim)
            dx = slope * (wide - of_dy - normal * of_product)
            mask = masks[index]
            dxs.append((dx if mask is None else dx * mask).astype(x.dtype))
            dbiases.append(sums[2 * index].astype(biases[index].dtype))
            dscales.append(sums[2 * index + 1].astype(scales[index].dtype))
    return tuple(dxs), tuple(dscales), tuple(dbiases), None


def _primal(group: _Group, xs: Any, scales: Any, biases: Any, rest: Any) -> Any:
    return _forward(group, xs, scales, biases, rest)[0]


_normalize = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_normalize.defvjp(_forward, _backward)
