"""Operators whose attributes became inputs, and operators that should stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.opsets.samples import (
    BOOLEANS,
    INTEGERS,
    NEWEST,
    POSITIVE,
    Sample,
    X,
    floats,
    sample,
)


def samples() -> Iterator[Sample]:
    """Yield the samples of this file."""
    for family in (_limits_and_pads, _arguments, _others):
        yield from family()


_REDUCTIONS: dict[str, Any] = {
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt(np.square(x).sum(**k)),
    "ReduceLogSum": lambda x, **k: np.log(x.sum(**k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    "ReduceMax": lambda x, **k: x.max(**k),
    "ReduceMean": lambda x, **k: x.mean(**k),
    "ReduceMin": lambda x, **k: x.min(**k),
    "ReduceProd": lambda x, **k: x.prod(**k),
    "ReduceSum": lambda x, **k: x.sum(**k),
    "ReduceSumSquare": lambda x, **k: np.square(x).sum(**k),
}


def _limits_and_pads() -> Iterator[Sample]:
    for dtype in (np.float32, np.float64):
        x = X.astype(dtype)
        for attributes in ({}, {"min": -0.5}, {"max": 0.5}, {"min": 0.0, "max": 6.0}):
            last = NEWEST if not attributes else 10
            yield sample("Clip", 6, last, x, expected=_clip(attributes), **attributes)
    limits = [np.array(value, np.float32) for value in (-0.5, 0.5)]
    yield sample("Clip", 11, NEWEST, X, *limits)
    yield sample("Clip", 11, NEWEST, X, None, limits[1])
    for mode in ("constant", "reflect", "edge"):
        for dtype in (np.float32, np.float64):
            x, pads = X.astype(dtype), [0, 0, 1, 2, 0, 0, 2, 1]
            yield sample("Pad", 2, 10, x, pads=pads, mode=mode, expected=_pad(pads, mode, 0))
            if mode == "constant":
                more = {"pads": pads, "value": 1.5}
                yield sample("Pad", 2, 10, x, expected=_pad(pads, mode, 1.5), **more)
                more = {"paddings": pads, "value": 1.5}
                yield sample("Pad", 1, 1, x, expected=_pad(pads, mode, 1.5), **more)
            yield sample("Pad", 11, NEWEST, x, np.array(pads), mode=mode)
    yield sample("Pad", 2, 10, X, pads=[0, 0, -1, 2, 0, 0, 2, -1])


def _clip(attributes: dict[str, float]) -> Any:
    return lambda x: np.clip(x, attributes.get("min", -np.inf), attributes.get("max", np.inf))


def _pad(pads: list[int], mode: Any, value: float) -> Any:
    widths = list(zip(pads[:4], pads[4:], strict=True))
    more: Any = {"constant_values": value} if mode == "constant" else {}
    return lambda x: np.pad(x, widths, mode, **more)


def _arguments() -> Iterator[Sample]:
    yield sample(
        "Slice",
        1,
        9,
        X,
        starts=[0, 1],
        ends=[1, 4],
        axes=[1, 3],
        expected=lambda x: x[:, :1, :, 1:4],
    )
    yield sample("Slice", 1, 9, X, starts=[0, -2], ends=[9, -1], expected=lambda x: x[:, -2:-1])
    ints = [np.array(v) for v in ([0, 1], [1, 4], [1, 3])]
    yield sample("Slice", 10, NEWEST, X, *ints)
    for top in ({"k": 2}, {"k": 3, "axis": 1}, {"k": 4, "axis": 3}):
        yield sample("TopK", 1, 9, X, outputs=2, expected=_top(**top), **top)
    yield sample("TopK", 10, NEWEST, X, np.array([2]), outputs=2, axis=1)
    for op_type, function in _REDUCTIONS.items():
        last = 12 if op_type == "ReduceSum" else 17
        for axes in ([1], [2, 3], [0, 1, 2, 3], None):
            for keepdims in (0, 1):
                attributes: dict[str, Any] = {"keepdims": keepdims}
                if axes is not None:
                    attributes["axes"] = axes
                wanted = _reduced(function, axes, keepdims)
                yield sample(op_type, 1, last, POSITIVE, expected=wanted, **attributes)
        yield sample(op_type, 11, last, POSITIVE, axes=[-1, 1])
        yield sample(op_type, last + 1, NEWEST, POSITIVE, np.array([2]))
    for op_type in ("ArgMax", "ArgMin"):
        for axis in (0, 2):
            wanted = _arg(op_type, axis)
            yield sample(op_type, 1, NEWEST, X, axis=axis, keepdims=0, expected=wanted)
    ones = floats(2, 1, 3, 1)
    yield sample("Squeeze", 1, 12, ones, axes=[1, 3], expected=lambda x: x[:, 0, :, 0])
    yield sample("Squeeze", 1, NEWEST, ones, expected=np.squeeze)
    yield sample("Squeeze", 11, 12, ones, axes=[-1])
    yield sample("Unsqueeze", 1, 12, X, axes=[0, 2], expected=lambda x: x[None, :, None])
    yield sample("Unsqueeze", 11, 12, X, axes=[-1, 1])
    yield sample("Split", 2, 12, X, axis=3, split=[2, 3], outputs=2, expected=lambda x: x[..., :2])
    yield sample("Split", 2, 17, X, axis=2, outputs=2, expected=lambda x: x[:, :, :2])
    yield sample("Split", 1, 1, X, axis=3, split=[2, 3], outputs=2, expected=lambda x: x[..., :2])
    yield sample("Split", 13, NEWEST, X, np.array([2, 3]), axis=3, outputs=2)
    yield sample("Reshape", 1, 4, X, shape=[0, -1, 5], expected=lambda x: x.reshape(2, -1, 5))
    yield sample(
        "Reshape", 5, NEWEST, X, np.array([0, -1, 5]), expected=lambda x, _: x.reshape(2, -1, 5)
    )
    yield sample("Dropout", 6, 6, X, is_test=1, ratio=0.3, expected=lambda x: x)
    yield sample("Dropout", 1, 5, X, is_test=1, consumed_inputs=[0], expected=lambda x: x)
    yield sample("Dropout", 7, 11, X, ratio=0.3)
    yield sample("Dropout", 7, NEWEST, X)
    yield sample("Tile", 6, NEWEST, X, np.array([1, 2, 1, 3]), expected=np.tile)
    yield sample("Expand", 8, NEWEST, floats(3, 1), np.array([2, 3, 4]))


def _top(k: int, axis: int = -1) -> Any:
    return lambda x: -np.sort(-x, axis=axis).take(range(k), axis=axis)


def _reduced(function: Any, axes: list[int] | None, keepdims: int) -> Any:
    along = None if axes is None else tuple(axes)
    return lambda x: np.asarray(function(x.astype(np.float64), axis=along, keepdims=bool(keepdims)))


def _arg(op_type: str, axis: int) -> Any:
    return lambda x: (x.argmax if op_type == "ArgMax" else x.argmin)(axis=axis)


def _others() -> Iterator[Sample]:
    yield sample("Concat", 1, 3, X, X * 2, fed=2, expected=lambda *xs: np.concatenate(xs, axis=1))
    yield sample(
        "Concat",
        4,
        NEWEST,
        X,
        X * 2,
        fed=2,
        axis=2,
        expected=lambda *xs: np.concatenate(xs, axis=2),
    )
    yield sample("Cast", 1, 5, X, to="INT32", expected=lambda x: x.astype(np.int32))
    yield sample("Cast", 6, NEWEST, X, to=7, expected=lambda x: x.astype(np.int64))
    yield sample(
        "Transpose", 1, NEWEST, X, perm=[0, 2, 3, 1], expected=lambda x: x.transpose(0, 2, 3, 1)
    )
    yield sample("Flatten", 1, NEWEST, X, axis=2, expected=lambda x: x.reshape(6, 20))
    yield sample("Flatten", 1, NEWEST, X, expected=lambda x: x.reshape(2, 60))
    yield sample("Shape", 1, NEWEST, X, expected=lambda x: np.array(x.shape))
    yield sample("Size", 1, NEWEST, X, expected=lambda x: np.array(x.size))
    indices = np.array([[0, 2], [1, 0]])
    yield sample("Gather", 1, NEWEST, X, indices, axis=1, expected=lambda x, i: x.take(i, axis=1))
    yield sample("GatherElements", 11, NEWEST, floats(2, 3), indices, axis=1)
    yield sample("GatherND", 11, NEWEST, X, indices)
    yield sample("Scatter", 9, 10, floats(2, 3), indices, floats(2, 2), axis=1)
    yield sample("Scatter", 9, 10, floats(3, 3), indices, floats(2, 2))
    yield sample("ScatterElements", 11, NEWEST, floats(2, 3), indices, floats(2, 2), axis=1)
    yield sample("ScatterND", 11, NEWEST, X, indices, floats(2, 4, 5))
    yield sample("Where", 9, NEWEST, BOOLEANS, X, X * 2, fed=3)
    yield sample(
        "OneHot", 9, NEWEST, indices, np.array(4), np.array([0.0, 1.0], np.float32), axis=1
    )
    yield sample("NonZero", 9, NEWEST, X)
    yield sample("Compress", 9, NEWEST, X, np.array([True, False, True]), axis=1)
    yield sample("CumSum", 11, NEWEST, X, np.array(1))
    yield sample("Mod", 10, NEWEST, INTEGERS, np.array([3, 2, 5, 4]))
    yield sample("Trilu", 14, NEWEST, X)
    yield sample("EyeLike", 9, NEWEST, floats(3, 4))
    yield sample("ConstantOfShape", 9, NEWEST, np.array([2, 3]))
    yield sample("Not", 1, NEWEST, BOOLEANS, expected=np.logical_not)
    yield sample("Det", 11, NEWEST, floats(3, 3))
    yield sample("Unique", 11, NEWEST, np.round(X), outputs=4)
    yield sample("ReverseSequence", 10, NEWEST, floats(4, 3), np.array([1, 2, 4]))
    boxes = np.sort(np.random.default_rng(0).uniform(size=(1, 6, 4)).astype(np.float32))
    scores = np.random.default_rng(1).uniform(size=(1, 2, 6)).astype(np.float32)
    limits = (np.array([3]), np.array([0.5], np.float32), np.array([0.1], np.float32))
    yield sample("NonMaxSuppression", 10, NEWEST, boxes, scores, *limits, fed=2)
    scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
    yield sample("QuantizeLinear", 10, NEWEST, X, scale, zero)
    yield sample(
        "DequantizeLinear", 10, NEWEST, (X * 20 + 128).clip(0, 255).astype(np.uint8), scale, zero
    )
    yield sample("DynamicQuantizeLinear", 11, NEWEST, X, outputs=3)
    yield sample("DFT", 17, 19, floats(2, 5, 6, 2), axis=2)
    yield sample("DFT", 17, 19, floats(2, 5, 6, 2))
    steps, hidden = floats(5, 2, 3), 4
    for op_type, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        w, r = floats(1, gates * hidden, 3), floats(1, gates * hidden, hidden)
        yield sample(
            op_type, 7, NEWEST, steps, w, r, floats(1, 2 * gates * hidden), hidden_size=hidden
        )
