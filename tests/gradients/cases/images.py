"""Samples of pools and of normalizations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gradients.cases.products import _torch_pads
from tests.gradients.cases.registry import case
from tests.gradients.sample import Array, Draw, Sample

_EPSILON = 0.0625
_MAX_POOL = [F.max_pool1d, F.max_pool2d, F.max_pool3d]
_AVERAGE_POOL = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d]


@case("GlobalAveragePool", "GlobalMaxPool")
def global_pool(op_type: str, draw: Draw) -> Sample:
    x = draw.distinct(_image(draw))
    axes = list(range(2, x.ndim))
    return Sample(
        op_type=op_type,
        inputs=[x],
        oracle=lambda x: x.amax(axes, True) if "Max" in op_type else x.mean(axes, True),
        single=True,
        reference="Max" in op_type,
    )


@case("MaxPool")
def max_pool(op_type: str, draw: Draw) -> Sample:
    x = draw.distinct(_image(draw, 2))
    axes = x.ndim - 2
    kernel = [draw.integer(1, 2) for _ in range(axes)]
    strides, dilations = ([draw.integer(1, 2) for _ in range(axes)] for _ in range(2))
    pads = [draw.integer(0, 1) * (size // 2) for size in kernel]
    dilations = [1 if size < 3 else gap for size, gap in zip(x.shape[2:], dilations, strict=True)]
    extents = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilations, strict=True)]
    ceil = draw.flag() and not _starts_in_pads(x, extents, strides, pads)
    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={
            "kernel_shape": kernel,
            "strides": strides,
            "dilations": dilations,
            "pads": pads * 2,
            "ceil_mode": int(ceil),
        },
        oracle=lambda x: _MAX_POOL[axes - 1](x, kernel, strides, pads, dilations, ceil),
        outputs=draw.one_of(1, 2),
    )


@case("AveragePool")
def average_pool(op_type: str, draw: Draw) -> Sample:
    x = draw.values(_image(draw, 2))
    axes = x.ndim - 2
    kernel = [draw.integer(1, 2) for _ in range(axes)]
    strides = [draw.integer(1, 2) for _ in range(axes)]
    pads = [draw.integer(0, 1) * (size // 2) for size in kernel]
    ceil, counted = draw.flag() and not _starts_in_pads(x, kernel, strides, pads), draw.flag()

    def oracle(x: Any) -> Any:
        return _AVERAGE_POOL[axes - 1](x, kernel, strides, pads, ceil, counted)

    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={
            "kernel_shape": kernel,
            "strides": strides,
            "pads": pads * 2,
            "ceil_mode": int(ceil),
            "count_include_pad": int(counted),
        },
        oracle=oracle,
        single=True,
    )


@case("LpPool")
def lp_pool(op_type: str, draw: Draw) -> Sample:
    x = draw.values(_image(draw, 2), kinks=[-0.1, 0.0, 0.1])
    axes, power = x.ndim - 2, draw.integer(1, 3)
    kernel = [draw.integer(1, 2) for _ in range(axes)]
    strides = [draw.integer(1, 2) for _ in range(axes)]
    pads = [draw.integer(0, 1) * (size // 2) for size in kernel]

    def oracle(x: Any) -> Any:
        padded = F.pad(x.abs() ** power, _torch_pads(pads * 2))
        mean = _AVERAGE_POOL[axes - 1](padded, kernel, strides)
        return (mean * float(np.prod(kernel))) ** (1 / power)

    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={"kernel_shape": kernel, "strides": strides, "pads": pads * 2, "p": power},
        oracle=oracle,
        single=True,
        reference=True,
    )


@case("LayerNormalization")
def layer_normalization(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(1, 3), draw.integer(2, 4)])
    axis = draw.one_of(1, 2, -1, -2)
    shape = x.shape[axis:]
    parameters = [draw.values(shape) for _ in range(draw.integer(1, 2))]

    def oracle(x: Any, scale: Any, bias: Any = None) -> Any:
        return F.layer_norm(x, shape, scale, bias, _EPSILON)

    return Sample(
        op_type=op_type,
        inputs=[x, *parameters],
        attributes={"axis": axis, "epsilon": _EPSILON},
        oracle=oracle,
    )


@case("InstanceNormalization")
def instance_normalization(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(1, 3), draw.integer(2, 3), draw.integer(2, 3)])
    channels = x.shape[1]

    def oracle(x: Any, scale: Any, bias: Any) -> Any:
        return F.group_norm(x, channels, scale, bias, _EPSILON)

    return Sample(
        op_type=op_type,
        inputs=[x, draw.values([channels]), draw.values([channels])],
        attributes={"epsilon": _EPSILON},
        oracle=oracle,
        single=True,
        reference=True,
    )


@case("GroupNormalization")
def group_normalization(op_type: str, draw: Draw) -> Sample:
    groups, per_group = draw.integer(1, 2), draw.integer(1, 2)
    channels = groups * per_group
    x = draw.values([draw.integer(1, 3), channels, draw.integer(2, 3), draw.integer(2, 3)])

    def oracle(x: Any, scale: Any, bias: Any) -> Any:
        return F.group_norm(x, groups, scale, bias, _EPSILON)

    return Sample(
        op_type=op_type,
        inputs=[x, draw.values([channels]), draw.values([channels])],
        attributes={"epsilon": _EPSILON, "num_groups": groups, "stash_type": 11},
        oracle=oracle,
        min_opset=21,
        static=(0, 1, 2),
    )


@case("BatchNormalization")
def frozen_batch_normalization(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(1, 3), draw.integer(1, 3)])
    scale, bias, mean = (draw.values([x.shape[1]]) for _ in range(3))
    variance = draw.values([x.shape[1]], 0.5, 2.0)

    def oracle(x: Any, scale: Any, bias: Any) -> Any:
        moving = torch.tensor(mean), torch.tensor(variance)
        return F.batch_norm(x, *moving, scale, bias, eps=_EPSILON)

    return Sample(
        op_type=op_type,
        inputs=[x, scale, bias, mean, variance],
        attributes={"epsilon": _EPSILON},
        oracle=oracle,
        frozen=(3, 4),
    )


def _starts_in_pads(x: Array, extents: list[int], strides: list[int], pads: list[int]) -> bool:
    """Whether ceil mode adds a window on pads alone, which inference counts and no kernel does."""
    axes = zip(x.shape[2:], extents, strides, pads, strict=True)
    return any(
        -(-(size + 2 * pad - extent) // stride) * stride >= size + pad
        for size, extent, stride, pad in axes
    )


def _image(draw: Draw, low: int = 1) -> tuple[int, ...]:
    axes = draw.one_of(1, 2, 2, 3)
    return (
        draw.batch(),
        draw.integer(1, 2),
        *(draw.integer(low, 4 - axes // 3) for _ in range(axes)),
    )
