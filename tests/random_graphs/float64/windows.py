"""Windows over spatial axes: where they lie, and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nn

from tests.random_graphs.float64.values import ROUNDINGS, Array, Known, Site, computed, operator


def windows(site: Site, kernel: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the padding before and behind each axis."""
    rank = len(kernel)
    auto = site.attributes.get("auto_pad", b"NOTSET").decode()
    if auto == "VALID":
        return [(0, 0)] * rank
    if auto == "NOTSET":
        pads = site.ints("pads", [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    strides, dilations = site.ints("strides", [1] * rank), site.ints("dilations", [1] * rank)
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        needed = (math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size
        small, large = max(needed, 0) // 2, -(-max(needed, 0) // 2)
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def padded(array: Array, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.pad(array, [(0, 0), (0, 0), *pads], constant_values=value))


@operator("MaxPool")
def _max_pool(site: Site, x: Known) -> Known:
    kernel = site.ints("kernel_shape", ())
    rank = len(kernel)
    pads = windows(site, kernel, x.value.shape[2:])
    run = (nn.max_pool1d, nn.max_pool2d, nn.max_pool3d)[rank - 1]
    strides = site.ints("strides", [1] * rank)
    y, size = (
        run(padded(values, pads, border), kernel, strides).numpy()
        for values, border in ((x.value, -math.inf), (x.size, 0.0))
    )
    return Known(y, x.dtype, size, x.error)


@operator("AveragePool")
def _average_pool(site: Site, x: Known) -> Known:
    kernel = site.ints("kernel_shape", ())
    rank = len(kernel)
    pads = windows(site, kernel, x.value.shape[2:])
    run = (nn.avg_pool1d, nn.avg_pool2d, nn.avg_pool3d)[rank - 1]
    strides = site.ints("strides", [1] * rank)
    counted = padded(np.ones(x.value.shape), pads, site.attributes.get("count_include_pad", 0))
    share = run(counted, kernel, strides).numpy()
    y, size = (
        run(padded(values, pads), kernel, strides).numpy() / share for values in (x.value, x.size)
    )
    return Known(y, x.dtype, size, x.error + math.prod(kernel) * computed(x) + ROUNDINGS * x.unit)


@operator("GlobalAveragePool")
def _global_average_pool(site: Site, x: Known) -> Known:
    del site
    axes = tuple(range(2, x.value.ndim))
    y, size = (values.mean(axes, keepdims=True) for values in (x.value, x.size))
    terms = math.prod(x.value.shape[2:])
    return Known(y, x.dtype, size, x.error + terms * computed(x) + ROUNDINGS * x.unit)
