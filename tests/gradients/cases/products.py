"""Samples of convolutions and of products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gradients.cases.registry import case
from tests.gradients.sample import Draw, Sample

_CONV = [F.conv1d, F.conv2d, F.conv3d]
_CONV_TRANSPOSE = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]


@case("Conv")
def conv(op_type: str, draw: Draw) -> Sample:
    axes = draw.one_of(1, 2, 2, 3)
    group, per_group, filters = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 2)
    kernel = [draw.integer(1, 3) for _ in range(axes)]
    strides, dilations = ([draw.integer(1, 2) for _ in range(axes)] for _ in range(2))
    mode = draw.one_of("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    if mode.startswith("SAME"):  # ONNX Runtime refuses dilations there
        dilations = [1] * axes
    pads = [draw.integer(0, 2) for _ in range(2 * axes)]
    extents = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilations, strict=True)]
    sizes = [extent + draw.integer(0, 2) for extent in extents]
    if mode == "VALID":
        pads = [0] * (2 * axes)
    elif mode != "NOTSET":
        pads = _same_pads(sizes, extents, strides, lower=mode == "SAME_LOWER")
    x = draw.values([draw.batch(), group * per_group, *sizes])
    weight = draw.values([group * filters, per_group, *kernel])
    bias = [draw.values([group * filters])] if draw.flag() else []

    def oracle(x: Any, weight: Any, bias: Any = None) -> Any:
        padded = F.pad(x, _torch_pads(pads))
        return _CONV[axes - 1](padded, weight, bias, strides, 0, dilations, group)

    attributes = {"group": group, "strides": strides, "dilations": dilations, "auto_pad": mode}
    return Sample(
        op_type=op_type,
        inputs=[x, weight, *bias],
        attributes=attributes | ({"pads": pads} if mode == "NOTSET" else {}),
        oracle=oracle,
        single=True,
        static=(1,),
    )


@case("ConvTranspose")
def conv_transpose(op_type: str, draw: Draw) -> Sample:
    axes = draw.one_of(1, 2, 2, 3)
    group, per_group, filters = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 2)
    kernel = [draw.integer(2, 3) for _ in range(axes)]
    strides, dilations = ([draw.integer(1, 2) for _ in range(axes)] for _ in range(2))
    pads = [draw.integer(0, 1) for _ in range(2 * axes)]
    extra = [draw.integer(0, stride - 1) for stride in strides]
    x = draw.values([draw.batch(), group * per_group, *(draw.integer(2, 3) for _ in range(axes))])
    weight = draw.values([group * per_group, filters, *kernel])
    bias = [draw.values([group * filters])] if draw.flag() else []

    def oracle(x: Any, weight: Any, bias: Any = None) -> Any:
        full = _CONV_TRANSPOSE[axes - 1](x, weight, None, strides, 0, 0, group, dilations)
        cropped = F.pad(
            full,
            _torch_pads(
                [-begin for begin in pads[:axes]]
                + [more - end for more, end in zip(extra, pads[axes:], strict=True)]
            ),
        )
        return cropped if bias is None else cropped + bias.reshape(1, -1, *[1] * axes)

    return Sample(
        op_type=op_type,
        inputs=[x, weight, *bias],
        attributes={
            "group": group,
            "strides": strides,
            "dilations": dilations,
            "pads": pads,
            "output_padding": extra,
        },
        oracle=oracle,
        single=True,
        static=(1,),
    )


@case("Gemm")
def gemm(op_type: str, draw: Draw) -> Sample:
    rows, inner, columns = draw.batch(), draw.integer(1, 3), draw.integer(1, 3)
    turn_a, turn_b = draw.flag(), draw.flag()
    alpha, beta = draw.number(0.25, 2.0), draw.number(0.25, 2.0)
    shapes: list[tuple[int, ...]] = [(), (1,), (columns,), (rows, 1), (1, columns), (rows, columns)]
    a = draw.values([inner, rows] if turn_a else [rows, inner])
    b = draw.values([columns, inner] if turn_b else [inner, columns])
    c = [draw.values(draw.one_of(*shapes))] if draw.flag() else []

    def oracle(a: Any, b: Any, c: Any = 0.0) -> Any:
        return alpha * (a.T if turn_a else a) @ (b.T if turn_b else b) + beta * c

    return Sample(
        op_type=op_type,
        inputs=[a, b, *c],
        attributes={"alpha": alpha, "beta": beta, "transA": int(turn_a), "transB": int(turn_b)},
        oracle=oracle,
    )


@case("MatMul")
def matmul(op_type: str, draw: Draw) -> Sample:
    rows, inner, columns = draw.batch(), draw.integer(1, 3), draw.integer(1, 3)
    lead = [draw.integer(1, 3) for _ in range(draw.integer(0, 2))]
    left = [1 if draw.flag() else size for size in lead][draw.integer(0, len(lead)) :]
    right = [1 if draw.flag() else size for size in lead][draw.integer(0, len(lead)) :]
    a = draw.one_of([*left, rows, inner], [inner])
    b = draw.one_of([*right, inner, columns], [inner])
    return Sample(op_type=op_type, inputs=[draw.values(a), draw.values(b)], oracle=torch.matmul)


def _same_pads(
    sizes: list[int], extents: list[int], strides: list[int], *, lower: bool
) -> list[int]:
    begins, ends = [], []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(large if lower else small)
        ends.append(small if lower else large)
    return begins + ends


def _torch_pads(pads: list[int]) -> list[int]:
    """Return pads as torch takes them: begin and end of the last axis first."""
    axes = len(pads) // 2
    pairs = np.asarray(pads).reshape(2, axes).T[::-1]
    return [int(number) for number in pairs.reshape(-1)]
