"""Resizing, windows and normalization."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.opsets.samples import (
    NEWEST,
    Array,
    Sample,
    floats,
    sample,
)


def samples() -> Iterator[Sample]:
    """Yield the samples of this file."""
    yield from _resized()
    yield from _windows()


def _resized() -> Iterator[Sample]:
    scales = [
        *([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 3.0, 1.5], [1.0, 1.0, 1.0, 2.5], [1.0, 1.0, 1.25, 1.75]),
    ]
    smaller = [
        *([1.0, 1.0, 0.5, 0.5], [1.0, 1.0, 0.6, 0.6], [1.0, 1.0, 0.75, 1.0], [1.0, 1.0, 1.6, 0.7]),
        *([1.0, 1.0, 0.3, 2.5], [1.0, 1.0, 1.25, 0.4]),
    ]
    x = floats(2, 3, 6, 7)
    for mode in ("nearest", "linear"):
        for given in scales:
            array = np.array(given, np.float32)
            yield sample("Upsample", 7, 8, x, mode=mode, scales=given)
            yield sample("Upsample", 9, 9, x, array, mode=mode)
            yield sample("Upsample", 9, 9, x, array, mode=mode, fed=2)
        for given in (*scales, *smaller):
            array = np.array(given, np.float32)
            yield sample("Resize", 10, 10, x, array, mode=mode)
            yield sample("Resize", 10, 10, x, array, mode=mode, fed=2)
        yield sample("Upsample", 7, 8, floats(5, 6), mode=mode, scales=[2.0, 1.5])
        yield sample("Resize", 10, 10, floats(5, 6), np.array([0.6, 1.5], np.float32), mode=mode)
    yield sample("Upsample", 9, 9, x, np.array([1, 1, 2, 2], np.float32))
    for height, width in ((2.0, 2.0), (3.0, 2.0)):

        def expected(x: Array, h: int = int(height), w: int = int(width)) -> Array:
            return x.repeat(h, axis=2).repeat(w, axis=3)

        scaled = {"height_scale": height, "width_scale": width}
        yield sample("Upsample", 1, 6, x, mode="nearest", expected=expected, **scaled)
    for mode in ("nearest", "linear", "cubic"):
        for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
            for both in ([1, 1, 2, 2.5], [1, 1, 0.6, 0.6]):
                array = np.array(both, np.float32)
                more = {"mode": mode, "coordinate_transformation_mode": coordinates}
                yield sample("Resize", 11, 12, x, np.zeros(0, np.float32), array, **more)
                yield sample("Resize", 13, NEWEST, x, None, array, **more)
        sizes = np.array([2, 3, 9, 5], np.int64)
        yield sample("Resize", 13, NEWEST, x, None, None, sizes, mode=mode)
    roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9], np.float32)
    more = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    yield sample("Resize", 11, NEWEST, x, roi, np.array([1, 1, 0.8, 0.8], np.float32), **more)
    more = {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
    yield sample("Resize", 11, 12, x, roi, np.array([1, 1, 2, 2.5], np.float32), **more)


def _windows() -> Iterator[Sample]:
    x, w = floats(2, 3, 8, 9), floats(4, 3, 3, 3)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    yield sample("Conv", 1, NEWEST, x, w, floats(4), **window)
    yield sample("ConvTranspose", 1, NEWEST, x, floats(3, 2, 3, 3), **window)
    for op_type in ("MaxPool", "LpPool"):
        yield sample(op_type, 2, NEWEST, x, **window)
    yield sample("AveragePool", 7, NEWEST, x, **window)
    yield sample("AveragePool", 7, NEWEST, x, **window, count_include_pad=1)
    for op_type in ("AveragePool", "MaxPool"):
        yield sample(op_type, 10, NEWEST, x, **window, ceil_mode=1)
    yield sample("AveragePool", 10, NEWEST, x, **window, ceil_mode=1, count_include_pad=1)
    yield sample("MaxPool", 8, NEWEST, x, **window, outputs=2)
    for op_type in ("AveragePool", "MaxPool", "Conv"):
        more = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}
        yield sample(op_type, 7, NEWEST, x, *((w,) if op_type == "Conv" else ()), **more)
    for op_type in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield sample(op_type, 2, NEWEST, x)
    yield sample("LRN", 1, NEWEST, x, size=3)
    yield sample("LpNormalization", 1, NEWEST, x)
    yield sample("InstanceNormalization", 6, NEWEST, x, floats(3), floats(3))
    yield sample("MeanVarianceNormalization", 9, NEWEST, x)
    yield sample("LayerNormalization", 17, NEWEST, x, floats(9), floats(9))
    x6 = floats(2, 6, 4, 5)
    yield sample("GroupNormalization", 18, 20, x6, floats(3), floats(3), num_groups=3)
    yield sample("GroupNormalization", 21, NEWEST, x6, floats(6), floats(6), num_groups=3)
    yield sample("DepthToSpace", 1, NEWEST, floats(1, 8, 3, 2), blocksize=2)
    yield sample("SpaceToDepth", 1, NEWEST, floats(1, 2, 4, 6), blocksize=2)
    yield sample(
        "MaxRoiPool", 1, NEWEST, x, np.array([[0, 1, 1, 6, 6.0]], np.float32), pooled_shape=[2, 2]
    )
    rois = np.array([[1, 1, 6, 6.5]], np.float32)
    yield sample("RoiAlign", 10, 15, x, rois, np.array([1]), output_height=2, output_width=3)
    yield sample("RoiAlign", 16, NEWEST, x, rois, np.array([1]), output_height=2, output_width=3)
    grid = np.tanh(floats(2, 3, 4, 2))
    for mode in ("bilinear", "nearest", "bicubic", None):
        more = {} if mode is None else {"mode": mode}
        yield sample("GridSample", 16, 19, x, grid, **more)
