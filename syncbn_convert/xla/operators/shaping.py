"""Operators on shapes and on the order of elements, and what makes values of a shape."""

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


@operator("Shape", samples=sample_axes.nowhere)
def shape(at: Call, value: Array) -> Array:
    """Known when the program is traced."""
    sizes = np.shape(value)[slice(at.attributes.get("start", 0), at.attributes.get("end"))]
    return np.asarray(sizes, np.int64)


@operator("Size", samples=sample_axes.nowhere)
def size(at: Call, value: Array) -> Array:
    """Known when the program is traced."""
    del at
    return np.asarray(np.size(value), np.int64)


@operator("Constant")
def constant(at: Call) -> Array:
    """Of numbers."""
    (name, value), *_ = at.attributes.items()
    if name == "value":
        array = value.numpy()
        if array.dtype == np.float64:
            array = array.astype(at.dtype(int(ir.DataType.DOUBLE)))
        return array
    kinds: dict[str, Any] = {"float": np.float32, "int": np.int64}
    kind = name.removeprefix("value_").removesuffix("s")
    if kind not in kinds:
        raise at.refuse(f"its value is given as {name}", "give a tensor of numbers")
    return np.asarray(value, kinds[kind])


@operator("Reshape", samples=sample_axes.reshaped, known=(1,))
def reshape(at: Call, value: Array, _shape: Array) -> Array:
    """A size of 0 is the input's, unless allowzero is set."""
    wanted = at.known_ints(1)
    assert wanted is not None
    if not at.integer("allowzero", 0):
        wanted = [
            np.shape(value)[axis] if number == 0 else number for axis, number in enumerate(wanted)
        ]
    if -1 in wanted:
        others = math.prod(number for number in wanted if number != -1)
        wanted[wanted.index(-1)] = np.size(value) // others if others else 0
    return at_once(value).reshape(tuple(wanted))


@operator("Flatten", samples=sample_axes.reshaped)
def flatten(at: Call, value: Array) -> Array:
    """To a matrix."""
    axis = at.integer("axis", 1)
    axis = axis + value.ndim if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), math.prod(value.shape[axis:]))


@operator("Squeeze", samples=sample_axes.reshaped, known=(1,))
def squeeze(at: Call, value: Array, *_: Array) -> Array:
    """Axes that are given, or all of size 1."""
    axes = at.known_ints(1, "axes")
    return at.xp.squeeze(value, None if axes is None else tuple(axes))


@operator("Unsqueeze", samples=sample_axes.reshaped, known=(1,))
def unsqueeze(at: Call, value: Array, *_: Array) -> Array:
    """Axes of size 1."""
    axes = at.known_ints(1, "axes")
    assert axes is not None
    return at.xp.expand_dims(value, tuple(axes))


@operator("Transpose", samples=sample_axes.permuted)
def transpose(at: Call, value: Array) -> Array:
    """Any permutation."""
    return at.xp.transpose(value, at.ints("perm"))


def of_sizes(sized: np.ndarray[Any, Any] | None) -> Layout | None:
    """Return where samples lie in a value of a shape, one of whose sizes counts them."""
    if sized is None or not sized.any():
        return None
    axis = int(np.flatnonzero(sized)[0])
    return Layout(axis, int(sized[axis]))


def _expanded(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    sized = at.sized[1]
    if at.layouts[0] is None:
        return [of_sizes(sized)]
    layout = at.layouts[0]
    rank, own = np.ndim(outputs[0]), np.shape(at.inputs[0])
    axis = layout.axis + rank - len(own)
    if np.shape(outputs[0])[axis] != own[layout.axis]:
        raise sample_axes.mixes(at)
    return [layout.moved(axis)]


@operator("Expand", samples=_expanded, known=(1,))
def expand(at: Call, value: Array, _shape: Array) -> Array:
    """Any shape that is known."""
    wanted = at.known_ints(1)
    assert wanted is not None
    return at.xp.broadcast_to(value, np.broadcast_shapes(np.shape(value), tuple(wanted)))


@operator("Tile", samples=sample_axes.untouched, known=(1,))
def tile(at: Call, value: Array, _repeats: Array) -> Array:
    """Repeats that are known."""
    return at.xp.tile(value, at.known_ints(1))


@operator("Concat", samples=sample_axes.joined)
def concat(at: Call, *pieces: Array) -> Array:
    """Any axis."""
    wide = jnp.result_type(*{piece.dtype for piece in pieces})
    alike = [piece if piece.dtype == wide else piece.astype(wide) for piece in pieces]
    return at.xp.concatenate(alike, at.integer("axis", 0))


@operator("Split", samples=sample_axes.along(0), known=(1,))
def split(at: Call, value: Array, *_: Array) -> tuple[Array, ...]:
    """Sizes that are given, or even pieces of which the last may be smaller."""
    axis = at.integer("axis", 0) % value.ndim
    sizes = at.known_ints(1, "split")
    if sizes is None:
        count = at.integer("num_outputs", len(at.node.outputs))
        whole = -(-value.shape[axis] // count)
        bounds = [min(whole * index, value.shape[axis]) for index in range(1, count)]
    else:
        bounds = np.cumsum(sizes)[:-1].tolist()
    return tuple(at.xp.split(value, bounds, axis))


@operator("DepthToSpace", samples=sample_axes.leading)
def depth_to_space(at: Call, value: Array) -> Array:
    """DCR and CRD."""
    block, (count, depth, *sizes) = at.integer("blocksize", 1), value.shape
    channels, (height, width) = depth // block**2, sizes
    if at.text("mode", "DCR") == "DCR":
        apart = value.reshape(count, block, block, channels, height, width)
        turned = apart.transpose(0, 3, 4, 1, 5, 2)
    else:
        apart = value.reshape(count, channels, block, block, height, width)
        turned = apart.transpose(0, 1, 4, 2, 5, 3)
    return turned.reshape(count, channels, height * block, width * block)


@operator("SpaceToDepth", samples=sample_axes.leading)
def space_to_depth(at: Call, value: Array) -> Array:
    """Any block size."""
    block, (count, channels, height, width) = at.integer("blocksize", 1), value.shape
    apart = value.reshape(count, channels, height // block, block, width // block, block)
    turned = apart.transpose(0, 3, 5, 1, 2, 4)
    return turned.reshape(count, channels * block**2, height // block, width // block)


def _of_shape(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    return [of_sizes(at.sized[0])] * len(outputs)


@operator("ConstantOfShape", samples=_of_shape, known=(0,))
def constant_of_shape(at: Call, _shape: Array) -> Array:
    """A shape that is known."""
    wanted = at.known_ints(0)
    given = at.attributes.get("value")
    value = np.zeros(1, np.float32) if given is None else given.numpy()
    return np.full(tuple(wanted or ()), value.reshape(-1)[0], value.dtype)


@operator("Range", known=(0, 1, 2))
def numbers(at: Call, start: Array, limit: Array, delta: Array) -> Array:
    """Bounds that are known."""
    begin, end, step = (at.known(index) for index in range(3))
    assert begin is not None
    del start, limit, delta
    return np.arange(begin.item(), _item(end), _item(step), dtype=begin.dtype)


def _item(value: Any) -> Any:
    return value.item()


@operator("EyeLike")
def identity_matrix(at: Call, like: Array) -> Array:
    """Any diagonal."""
    dtype = at.dtype(at.integer("dtype", int(ir.DataType.from_numpy(np.dtype(like.dtype)))))
    rows, columns = like.shape
    return np.eye(rows, columns, at.integer("k", 0), dtype)


def _one_more(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    layout = at.layouts[0]
    if layout is None or any(other is not None for other in at.layouts[1:]):
        raise sample_axes.mixes(at)
    axis = at.integer("axis", -1) % np.ndim(outputs[0])
    return [layout.moved(layout.axis + (axis <= layout.axis))]


@operator("OneHot", samples=_one_more, known=(1,))
def one_hot(at: Call, indices: Array, _depth: Array, values: Array) -> Array:
    """A depth that is known; indices beyond it are off everywhere."""
    depth = int((at.known_ints(1) or [0])[0])
    places = np.arange(depth)
    axis = at.integer("axis", -1) % (np.ndim(indices) + 1)
    whole = indices if np.issubdtype(indices.dtype, np.integer) else indices.astype(np.int64)
    wrapped = at.xp.where(whole < 0, whole + depth, whole)
    same = at.xp.expand_dims(wrapped, axis) == places.reshape(
        [-1 if place == axis else 1 for place in range(np.ndim(indices) + 1)]
    )
    return at.xp.where(same, values[1], values[0])


def at_once(value: Array) -> Array:
    """Return a value that has methods of arrays: a Python number has none."""
    return value if hasattr(value, "reshape") else np.asarray(value)


@operator("NonZero", known=(0,))
def non_zero(at: Call, value: Array) -> Array:
    """Of a value that is known."""
    del value
    return np.asarray(np.nonzero(_known(at)), np.int64)


def _known(at: Call) -> np.ndarray[Any, Any]:
    value = at.known(0)
    assert value is not None
    return value


def _along_axis(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    return sample_axes.beside(at, _axis(at), outputs)


@operator("CumSum", samples=_along_axis, known=(1,))
def running_sum(at: Call, value: Array, _axis_input: Array) -> Array:
    """Exclusive and reverse."""
    axis = _axis(at) % value.ndim
    turned = lax.rev(value, (axis,)) if at.integer("reverse", 0) else value
    total = jnp.cumsum(turned, axis, dtype=value.dtype)
    if at.integer("exclusive", 0):
        total = total - turned
    return lax.rev(total, (axis,)) if at.integer("reverse", 0) else total


def _axis(at: Call) -> int:
    return int((at.known_ints(1) or [0])[0])
