"""Where the samples lie in a value, so that those that are padding count for nothing.

A replica's piece is padded to the size that all replicas have. Translations say where the samples
of their outputs lie; one that mixes samples masks the padding, or says that it cannot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from syncbn_convert.xla.translations import Array, Call, Placing


@dataclasses.dataclass(frozen=True)
class Layout:
    """An axis whose elements belong to samples, `inner` consecutive ones to each.

    Attributes:
        axis: The axis, from 0 up.
        inner: Elements of one sample.
    """

    axis: int
    inner: int = 1

    def spread(self, weights: Array, rank: int) -> Array:
        """Return weights of samples in a shape that broadcasts to a value of this layout."""
        wide = jnp.repeat(weights, self.inner) if self.inner != 1 else weights
        return wide.reshape([1] * self.axis + [-1] + [1] * (rank - self.axis - 1))

    def moved(self, axis: int) -> Layout:
        """Return the same samples along another axis."""
        return Layout(axis, self.inner)


Layouts = Sequence[Layout | None]


def mixes(at: Call) -> Exception:
    """Return the error for a node that does not keep samples apart."""
    return at.refuse(
        "it mixes the samples of a piece, and this batch cannot be dealt evenly to the replicas, "
        "so that some samples are padding",
        "give a batch size, and a number of samples, that the replicas divide",
    )


def aligned(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Inputs that are broadcast to outputs of one shape."""
    rank = max(np.ndim(output) for output in outputs)
    found = {
        layout.moved(layout.axis + rank - np.ndim(value))
        for value, layout in zip(at.inputs, at.layouts, strict=True)
        if layout is not None
    }
    if len(found) != 1:
        raise mixes(at)
    return [next(iter(found))] * len(outputs)


def same(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Of the first input, whose samples no other input has."""
    _first_alone(at)
    return [at.layouts[0]] * len(outputs)


def leading(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Whole samples along the first axis, as images have them."""
    layout = _first_alone(at)
    if layout.axis or layout.inner != 1:
        raise mixes(at)
    return [layout] * len(outputs)


def along(default: int) -> Placing:
    """Something along the node's `axis`, another than the samples'."""

    def placing(at: Call, outputs: Sequence[Array]) -> Layouts:
        return beside(at, at.integer("axis", default), outputs)

    return placing


def along_last(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Something along all axes from the node's `axis` on, which lie behind the samples'."""
    layout = _first_alone(at)
    rank = np.ndim(at.inputs[0])
    if layout.axis >= at.integer("axis", -1) % rank:
        raise mixes(at)
    return [layout] + [layout if np.ndim(output) == rank else None for output in outputs[1:]]


def nowhere(at: Call, outputs: Sequence[Array]) -> Layouts:
    """None in what it makes."""
    del at
    return [None] * len(outputs)


def like_first(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Of the first input, whatever the others have."""
    return [at.layouts[0]] * len(outputs)


def joined(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Inputs that are put together along the node's `axis`."""
    found = {layout for layout in at.layouts if layout is not None}
    if len(found) != 1:
        raise mixes(at)
    layout = next(iter(found))
    if layout.axis == at.integer("axis", 0) % np.ndim(outputs[0]):
        raise mixes(at)
    return [layout] * len(outputs)


def untouched(at: Call, outputs: Sequence[Array]) -> Layouts:
    """An axis of samples that keeps its place and its size."""
    layout = _first_alone(at)
    before, after = np.shape(at.inputs[0]), np.shape(outputs[0])
    if before[: layout.axis + 1] != after[: layout.axis + 1]:
        raise mixes(at)
    return [layout] * len(outputs)


def reshaped(at: Call, outputs: Sequence[Array]) -> Layouts:
    """The same elements in the same order."""
    layout = _first_alone(at)
    before, after = np.shape(at.inputs[0]), np.shape(outputs[0])
    ahead = math.prod(before[: layout.axis])
    samples = before[layout.axis] // layout.inner
    behind = math.prod(before[layout.axis :]) // max(samples, 1)
    seen = 1
    for axis, size in enumerate(after):
        rest = math.prod(after[axis + 1 :])
        apart = seen == ahead and samples and size % samples == 0
        if apart and size // samples * rest == behind:
            return [Layout(axis, size // samples)] * len(outputs)
        seen *= size
    raise mixes(at)


def permuted(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Axes in another order."""
    layout = _first_alone(at)
    rank = np.ndim(at.inputs[0])
    order = at.ints("perm") or list(range(rank))[::-1]
    return [layout.moved(order.index(layout.axis))] * len(outputs)


def reduced(axes: Sequence[int], keep: bool, layout: Layout | None) -> Layout | None:
    """Return where samples lie after a reduction; None where it went over them."""
    if layout is None or layout.axis in axes:
        return None
    return layout if keep else layout.moved(layout.axis - sum(axis < layout.axis for axis in axes))


def product(at: Call, outputs: Sequence[Array]) -> Layouts:
    """A product of matrices, not along the samples."""
    left, right = at.layouts[:2]
    first, second = (np.ndim(value) for value in at.inputs[:2])
    rank = np.ndim(outputs[0])
    if right is None and left is not None and left.axis != first - 1:
        return [left.moved(left.axis + rank - first + (second == 1))]
    if left is None and right is not None and second > 1 and right.axis != second - 2:
        return [right.moved(right.axis + rank - second + (first == 1))]
    if left is not None and right is not None and left.inner == right.inner:
        shared = left.axis - first == right.axis - second
        if shared and left.axis < first - 2:
            return [left.moved(left.axis + rank - first)]
    raise mixes(at)


def rows(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Gemm with samples in the rows of the first matrix."""
    layout, *others = at.layouts
    columns = at.integer("transA", 0)
    if layout is None or layout.axis != columns or any(others[:1]):
        raise mixes(at)
    if len(others) > 1 and others[1] is not None and np.ndim(at.inputs[2]) < 2:
        raise mixes(at)
    return [layout.moved(0)] * len(outputs)


def gathered(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Slices picked by indices: samples in either, not in both."""
    data, indices = at.layouts[:2]
    axis = at.integer("axis", 0) % np.ndim(at.inputs[0])
    if data is None and indices is not None:
        return [indices.moved(axis + indices.axis)] * len(outputs)
    if data is not None and indices is None and data.axis != axis:
        shift = np.ndim(at.inputs[1]) - 1 if data.axis > axis else 0
        return [data.moved(data.axis + shift)] * len(outputs)
    raise mixes(at)


def beside_axis(at: Call, outputs: Sequence[Array]) -> Layouts:
    """Data and indices of samples that lie alike, along another axis."""
    axis = at.integer("axis", 0) % np.ndim(at.inputs[0])
    found = set(at.layouts)
    layout = at.layouts[0]
    if len(found) != 1 or layout is None or layout.axis == axis:
        raise mixes(at)
    return [layout] * len(outputs)


def _first_alone(at: Call) -> Layout:
    layout, *others = at.layouts
    if layout is None or any(other is not None for other in others):
        raise mixes(at)
    return layout


def beside(at: Call, axis: int, outputs: Sequence[Array]) -> Layouts:
    """Something along an axis, another than the samples'."""
    layout = _first_alone(at)
    if layout.axis == axis % np.ndim(at.inputs[0]):
        raise mixes(at)
    return [layout] * len(outputs)


def masked(at: Call, index: int, fill: Any) -> Array:
    """Return an input with `fill` in the place of padding."""
    value, mask = at.inputs[index], at.mask(index)
    if mask is None:
        return value
    return jnp.where(mask, value, jnp.asarray(fill, value.dtype))
