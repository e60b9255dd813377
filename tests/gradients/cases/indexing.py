"""Samples of operators that pick elements or put them somewhere, and of padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.gradients.cases.registry import case
from tests.gradients.sample import Array, Draw, Sample, ints

_FAR = 2**31


@case("Slice")
def slice_(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(1, 3))
    axes = draw.axes(x.ndim, low=1)
    leading = draw.flag() and not any(axis < 0 for axis in axes)
    if leading:
        axes = list(range(len(axes)))
    stepped = draw.flag()
    steps = [draw.one_of(1, 2, 3, -1, -2) if stepped else 1 for _ in axes]
    starts = [draw.one_of(-_FAR, -3, -2, -1, 0, 1, 2, 3, _FAR) for _ in axes]
    ends = [draw.one_of(-_FAR, -3, -2, -1, 0, 1, 2, 3, _FAR) for _ in axes]
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis % x.ndim] = slice(*_as_python(start, end, step, x.shape[axis]))
    positions = np.arange(x.size).reshape(x.shape)[tuple(index)]
    rest = [] if leading and not stepped else [ints(axes)]
    inputs = [x, ints(starts), ints(ends), *rest, *([ints(steps)] if stepped else [])]
    return Sample(op_type=op_type, inputs=inputs, oracle=_picked(positions))


@case("Pad")
def pad(op_type: str, draw: Draw) -> Sample:
    mode = draw.one_of("constant", "reflect", "edge", "wrap")
    if draw.empty:  # ONNX Runtime pads nothing else
        mode = "constant"
    x = draw.values([draw.batch(), draw.integer(2, 3), draw.integer(3, 4)])
    axes = draw.one_of([0, 1, 2], [1, 2], [-1]) if not draw.empty else draw.one_of([1, 2], [-1])
    low = -1 if mode == "constant" else 0
    pads = [(draw.integer(low, 1), draw.integer(low, 1)) for _ in axes]
    if mode in ("reflect", "wrap"):
        pads = [
            (0, 0) if x.shape[axis] < 2 else pair for axis, pair in zip(axes, pads, strict=True)
        ]
    given = ints([begin for begin, _ in pads] + [end for _, end in pads])
    whole = axes == [0, 1, 2] and draw.flag()
    positions = _padded_positions(x, axes, pads, mode)

    def oracle(x: Any) -> Any:
        flat = torch.cat([x.reshape(-1), torch.zeros(1, dtype=x.dtype)])
        return flat[torch.tensor(positions)]

    return Sample(
        op_type=op_type,
        inputs=[x, given] if whole else [x, given, None, ints(axes)],
        attributes={"mode": mode},
        oracle=oracle,
        min_opset=19,
    )


@case("Gather")
def gather(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), *(draw.integer(1, 4) for _ in range(draw.integer(1, 2)))])
    axis = draw.axis(x.ndim)
    axis = 1 if draw.empty else axis
    size = x.shape[axis]
    indices = np.asarray(draw.rng().integers(-size, size, size=draw.shape(0, 2)))
    kind = draw.one_of(np.int32, np.int64)
    positions = np.take(np.arange(x.size).reshape(x.shape), indices, axis)
    return Sample(
        op_type=op_type,
        inputs=[x, indices.astype(kind)],
        attributes={"axis": axis},
        oracle=_picked(positions),
    )


@case("GatherElements")
def gather_elements(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(1, 4), draw.integer(1, 3)])
    axis = draw.one_of(1, 2, -1)
    shape = list(x.shape)
    shape[axis] = draw.integer(1, 4)
    indices = draw.rng().integers(-x.shape[axis], x.shape[axis], size=shape)
    places = np.arange(x.size).reshape(x.shape)
    positions = np.take_along_axis(places, indices % x.shape[axis], axis)
    return Sample(
        op_type=op_type,
        inputs=[x, indices],
        attributes={"axis": axis},
        oracle=_picked(positions),
    )


@case("GatherND")
def gather_nd(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(1, 3), draw.integer(1, 3)])
    batch = 1 if draw.empty else draw.integer(0, 1)
    depth = draw.integer(1, 3 - batch)
    sizes = x.shape[batch : batch + depth]
    lead = (*x.shape[:batch], draw.integer(1, 3))
    indices = np.stack([draw.rng().integers(-size, size, size=lead) for size in sizes], axis=-1)
    places = np.arange(x.size).reshape(x.shape)
    wrapped = [indices[..., level] % sizes[level] for level in range(depth)]
    rows = [np.arange(x.shape[0])[:, None]] if batch else []
    positions = places[(*rows, *wrapped)]
    return Sample(
        op_type=op_type,
        inputs=[x, indices],
        attributes={"batch_dims": batch},
        oracle=_picked(positions),
    )


@case("TopK")
def top_k(op_type: str, draw: Draw) -> Sample:
    x = draw.distinct([draw.batch(), draw.integer(1, 4), draw.integer(1, 3)])
    axis, largest = draw.one_of(1, 2, -1), draw.flag()
    k = draw.integer(1, x.shape[axis])
    return Sample(
        op_type=op_type,
        inputs=[x, ints([k])],
        attributes={"axis": axis, "largest": int(largest)},
        oracle=lambda x: x.topk(k, axis, largest=largest).values,
        outputs=2,
    )


@case("ScatterElements")
def scatter_elements(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(2, 4)])
    reduction = draw.one_of("none", "add")
    count = draw.integer(1, x.shape[1])
    rng = draw.rng()
    rows = [
        rng.permutation(x.shape[1])[:count]
        if reduction == "none"
        else rng.integers(0, x.shape[1], count)
        for _ in range(x.shape[0])
    ]
    indices = ints(rows).reshape(x.shape[0], count)
    updates = draw.values(indices.shape)

    def oracle(x: Any, updates: Any) -> Any:
        where = torch.tensor(indices)
        scatter = x.scatter if reduction == "none" else x.scatter_add
        return scatter(1, where, updates)

    return Sample(
        op_type=op_type,
        inputs=[x, indices - x.shape[1] if draw.flag() else indices, updates],
        attributes={"axis": draw.one_of(1, -1), "reduction": reduction},
        oracle=oracle,
    )


@case("ScatterND")
def scatter_nd(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.integer(2, 4), draw.integer(1, 3)])
    reduction, rng = draw.one_of("none", "add"), draw.rng()
    count = 0 if draw.empty else draw.integer(1, x.shape[0])
    rows = (
        rng.permutation(x.shape[0])[:count]
        if reduction == "none"
        else rng.integers(0, x.shape[0], count)
    )
    updates = draw.values([count, x.shape[1]])
    return Sample(
        op_type=op_type,
        inputs=[x, ints(rows)[:, None], updates],
        attributes={"reduction": reduction},
        oracle=lambda x, updates: torch.index_put(
            x, (torch.tensor(ints(rows)),), updates, accumulate=reduction == "add"
        ),
    )


@case("ReverseSequence")
def reverse_sequence(op_type: str, draw: Draw) -> Sample:
    time, batch = draw.integer(1, 4), draw.integer(1, 3)
    x = draw.values([batch, time, 2])
    lengths = draw.rng().integers(1, time + 1, size=batch)
    places = np.arange(x.size).reshape(x.shape)
    for row, length in enumerate(lengths):
        places[row, :length] = places[row, :length][::-1].copy()
    return Sample(
        op_type=op_type,
        inputs=[x, lengths],
        attributes={"time_axis": 1, "batch_axis": 0},
        oracle=_picked(places),
    )


@case("Where")
def where(op_type: str, draw: Draw) -> Sample:
    chosen, left, right = draw.broadcast(3)
    condition = np.asarray(draw.rng().uniform(size=chosen) < 0.5)
    return Sample(
        op_type=op_type,
        inputs=[condition, draw.values(left), draw.values(right)],
        oracle=lambda a, b: torch.where(torch.tensor(condition), a, b),
    )


@case("Clip")
def clip(op_type: str, draw: Draw) -> Sample:
    low, high = (np.asarray(draw.number(*bounds)) for bounds in ((-1.5, -0.25), (0.25, 1.5)))
    x = draw.values(draw.shape(0), -3.0, 3.0, kinks=[float(low), float(high)])
    inputs: list[Array | None] = [x, low, high]
    given = draw.one_of(["min", "max"], ["min"], ["max"], [])
    if "min" not in given:
        inputs[1] = None
    if "max" not in given:
        inputs = inputs[:2]

    def oracle(x: Any, *bounds: Any) -> Any:
        return torch.clamp(x, **dict(zip(given, bounds, strict=True))) if given else x.clone()

    return Sample(op_type=op_type, inputs=inputs, oracle=oracle)


def _picked(positions: Array) -> Any:
    """Return the oracle of what picks elements by their place."""
    where = torch.tensor(positions.copy())
    return lambda x: x.reshape(-1)[where]


def _as_python(start: int, end: int, step: int, size: int) -> tuple[int, int | None, int]:
    """Say a slice of the operator as one of Python, which counts the end -1 from the end, too."""
    if step > 0:
        return start, end, step
    stop = end + size if end < 0 else end
    return start, stop if stop >= 0 else None, step


def _padded_positions(x: Array, axes: list[int], pads: list[tuple[int, int]], mode: str) -> Array:
    """Pad the places of elements as numpy does; the place of padding is the number of elements."""
    widths = [(0, 0)] * x.ndim
    crops = [slice(None)] * x.ndim
    for axis, (begin, end) in zip(axes, pads, strict=True):
        widths[axis] = (max(begin, 0), max(end, 0))
        crops[axis] = slice(max(-begin, 0), x.shape[axis] - max(-end, 0))
    places = np.arange(x.size).reshape(x.shape)[tuple(crops)]
    if mode == "constant":
        return np.pad(places, widths, constant_values=x.size)
    return np.pad(places, widths, mode=mode)  # type: ignore[call-overload,no-any-return]
