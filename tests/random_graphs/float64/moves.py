"""Operators that move elements or make constants."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper

from tests.random_graphs.float64.values import Known, Site, given, operator


@operator("Identity", "Dropout")
def _identity(site: Site, x: Known, *others: Known) -> Sequence[Known]:
    del others
    mask = given(np.ones(x.value.shape, np.bool_))
    return [x, mask][: site.outputs]


@operator("Constant")
def _constant(site: Site) -> Known:
    ((name, value),) = site.attributes.items()
    if name == "value":
        return given(numpy_helper.to_array(value))
    return given(np.array(value, np.int64 if name.startswith("value_int") else np.float32))


@operator("ConstantOfShape")
def _constant_of_shape(site: Site, shape: Known) -> Known:
    tensor = site.attributes.get("value")
    value = np.zeros(1, np.float32) if tensor is None else numpy_helper.to_array(tensor)
    return given(np.full(shape.value, value[0], value.dtype))


@operator("Shape")
def _shape(site: Site, x: Known) -> Known:
    sizes = x.value.shape[site.attributes.get("start", 0) : site.attributes.get("end")]
    return given(np.array(sizes, np.int64))


@operator("Expand")
def _expand(site: Site, x: Known, shape: Known) -> Known:
    del site
    sizes = np.broadcast_shapes(x.value.shape, tuple(shape.value))
    return x.moved(lambda v: np.broadcast_to(v, sizes))


@operator("Gather")
def _gather(site: Site, x: Known, indices: Known) -> Known:
    axis = site.attributes.get("axis", 0)
    return x.moved(lambda v: np.take(v, indices.value, axis))


@operator("Transpose")
def _transpose(site: Site, x: Known) -> Known:
    order = site.attributes.get("perm")
    return x.moved(lambda v: np.ascontiguousarray(np.transpose(v, order)))


@operator("Reshape")
def _reshape(site: Site, x: Known, shape: Known) -> Known:
    kept = not site.attributes.get("allowzero", 0)
    sizes = [
        x.value.shape[axis] if size == 0 and kept else int(size)
        for axis, size in enumerate(shape.value)
    ]
    return x.moved(lambda v: v.reshape(sizes))


@operator("Flatten")
def _flatten(site: Site, x: Known) -> Known:
    axis = site.attributes.get("axis", 1)
    rows = math.prod(x.value.shape[: axis or 0])
    return x.moved(lambda v: v.reshape(rows, -1))


@operator("Squeeze")
def _squeeze(site: Site, x: Known, axes: Known | None = None) -> Known:
    gone = site.axes(axes)
    return x.moved(lambda v: np.squeeze(v, None if gone is None else tuple(gone)))


@operator("Unsqueeze")
def _unsqueeze(site: Site, x: Known, axes: Known | None = None) -> Known:
    added = site.axes(axes)
    assert added is not None
    return x.moved(lambda v: np.expand_dims(v, tuple(added)))


@operator("Concat")
def _concat(site: Site, *parts: Known) -> Known:
    axis = site.attributes["axis"]
    return Known(
        np.concatenate([part.value for part in parts], axis),
        parts[0].dtype,
        np.concatenate([part.size for part in parts], axis),
        max(part.error for part in parts),
    )


@operator("Split")
def _split(site: Site, x: Known, sizes: Known | None = None) -> list[Known]:
    lengths = site.ints("split", ()) if sizes is None else sizes.value.tolist()
    axis = site.attributes.get("axis", 0)
    ends = np.cumsum(lengths)
    return [
        x.moved(lambda v, s=end - length, e=end: np.take(v, range(s, e), axis))  # type: ignore[misc]
        for length, end in zip(lengths, ends, strict=True)
    ]


@operator("Slice")
def _slice(
    site: Site,
    x: Known,
    starts: Known | None = None,
    ends: Known | None = None,
    axes: Known | None = None,
    steps: Known | None = None,
) -> Known:
    names = ("starts", "ends", "axes", "steps")
    lists = [
        site.ints(name, ()) if known is None else known.value.tolist()
        for name, known in zip(names, (starts, ends, axes, steps), strict=True)
    ]
    lists[2] = lists[2] or list(range(len(lists[0])))
    lists[3] = lists[3] or [1] * len(lists[0])
    index: list[slice] = [slice(None)] * x.value.ndim
    for start, end, axis, step in zip(*lists, strict=True):
        index[axis] = slice(start, end, step)
    return x.moved(lambda v: np.ascontiguousarray(v[tuple(index)]))


@operator("Pad")
def _pad(site: Site, x: Known, pads: Known | None = None, value: Known | None = None) -> Known:
    sizes = site.ints("pads", ()) if pads is None else pads.value.tolist()
    filled = float(np.float32(site.attributes.get("value", 0.0)))
    if value is not None:
        filled = float(value.value)
    rank = x.value.ndim
    around = list(zip(sizes[:rank], sizes[rank:], strict=True))
    return dataclasses.replace(
        x,
        value=np.pad(x.value, around, constant_values=filled),
        size=np.pad(x.size, around, constant_values=abs(filled)),
    )


@operator("DequantizeLinear")
def _dequantize(site: Site, x: Known, scale: Known, zero: Known | None = None) -> Known:
    shape = [1] * x.value.ndim
    if scale.value.ndim:
        shape[site.attributes.get("axis", 1)] = -1
    point = 0.0 if zero is None else zero.value.astype(np.float64).reshape(shape)
    value = (x.value.astype(np.float64) - point) * scale.value.reshape(shape)
    return Known(value, scale.dtype, np.abs(value), scale.unit)
