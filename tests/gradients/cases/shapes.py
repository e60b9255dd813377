"""Samples of operators that change the shape or the order of elements."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from tests.gradients.cases.registry import case
from tests.gradients.sample import Draw, Sample, ints


@case("Reshape")
def reshape(op_type: str, draw: Draw) -> Sample:
    batch, height, width = draw.batch(), draw.integer(1, 3), draw.integer(1, 3)
    x = draw.values([batch, height, width])
    target = draw.one_of([batch, width, height], [0, width * height], [batch, 1, -1, 1])
    target = [0, width * height] if draw.empty else target
    shape = [batch if size == 0 else size for size in target]
    return Sample(op_type=op_type, inputs=[x, ints(target)], oracle=lambda x: x.reshape(shape))


@case("Flatten")
def flatten(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(1, 4))
    axis = draw.integer(-x.ndim, x.ndim)
    place = axis + x.ndim if axis < 0 else axis
    rows, columns = (int(torch.tensor(part).prod()) for part in (x.shape[:place], x.shape[place:]))
    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={"axis": axis},
        oracle=lambda x: x.reshape(rows, columns),
    )


@case("Squeeze")
def squeeze(op_type: str, draw: Draw) -> Sample:
    shape = [draw.batch(), 1, draw.integer(2, 3), 1]
    axes = draw.one_of([1], [-1], [1, 3], [3, -3])
    return Sample(
        op_type=op_type,
        inputs=[draw.values(shape), ints(axes)],
        oracle=lambda x: x.squeeze(tuple(axes)),
    )


@case("Unsqueeze")
def unsqueeze(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(0, 2))
    axes = draw.axes(x.ndim + 2, low=2)[:2]
    places = sorted(axis % (x.ndim + 2) for axis in axes)

    def oracle(x: Any) -> Any:
        for place in places:
            x = x.unsqueeze(place)
        return x

    return Sample(op_type=op_type, inputs=[x, ints(axes)], oracle=oracle)


@case("Transpose")
def transpose(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(1, 4))
    order = draw.permutation(x.ndim)
    default = draw.flag()
    places = list(range(x.ndim))[::-1] if default else order
    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={} if default else {"perm": order},
        oracle=lambda x: x.permute(places),
    )


@case("Expand")
def expand(op_type: str, draw: Draw) -> Sample:
    own = (draw.one_of(1, draw.batch()), draw.one_of(1, 3), draw.one_of(1, 2))[draw.integer(0, 3) :]
    full = [2 if size == 1 and draw.flag() else size for size in own]
    full = [draw.integer(1, 3)] * draw.integer(0, 1) + full
    kept = [1 if draw.flag() else size for size in full]
    shape = np.broadcast_shapes(own, tuple(kept))
    return Sample(
        op_type=op_type,
        inputs=[draw.values(own), ints(kept)],
        oracle=lambda x: x.expand(shape),
        constants=True,
    )


@case("Tile")
def tile(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(1, 3))
    repeats = [draw.integer(1, 3) for _ in range(x.ndim)]
    return Sample(op_type=op_type, inputs=[x, ints(repeats)], oracle=lambda x: x.tile(repeats))


@case("Concat")
def concat(op_type: str, draw: Draw) -> Sample:
    shape = list(draw.shape(1, 4))
    axis = draw.axis(len(shape))
    pieces = []
    for _ in range(draw.integer(1, 3)):
        shape[axis] = draw.integer(0, 3)
        pieces.append(draw.values(shape))
    return Sample(
        op_type=op_type,
        inputs=pieces,
        attributes={"axis": axis},
        oracle=lambda *pieces: torch.cat(pieces, axis),
    )


@case("Split")
def split(op_type: str, draw: Draw) -> Sample:
    shape = list(draw.shape(1, 3))
    axis = draw.axis(len(shape))
    sizes = [draw.integer(1, 3) for _ in range(draw.integer(2, 3))]
    even = draw.flag()
    if even:  # the last piece may be smaller
        sizes = [sizes[0]] * (len(sizes) - 1) + [max(sizes[0] - draw.integer(0, 1), 1)]
    shape[axis] = sum(sizes)
    x = draw.values(shape)
    flowing = draw.one_of(tuple(range(len(sizes))), (0,), (len(sizes) - 1,))

    def oracle(x: Any) -> tuple[Any, ...]:
        pieces = x.split(sizes, axis)
        return tuple(pieces[index] for index in flowing)

    return Sample(
        op_type=op_type,
        inputs=[x] if even else [x, ints(sizes)],
        attributes={"axis": axis} | ({"num_outputs": len(sizes)} if even else {}),
        oracle=oracle,
        outputs=len(sizes),
        flowing=flowing,
    )


@case("DepthToSpace")
def depth_to_space(op_type: str, draw: Draw) -> Sample:
    block, mode = draw.one_of(1, 2, 3), draw.one_of("DCR", "CRD")
    batch, channels, height, width = _image(draw)
    x = draw.values([batch, channels * block * block, height, width])

    def oracle(x: Any) -> Any:
        if mode == "CRD" and batch:
            return torch.nn.functional.pixel_shuffle(x, block)
        shape = [batch, channels, block, block, height, width]
        if mode == "DCR":
            shape = [batch, block, block, channels, height, width]
        order = [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
        pixels = x.reshape(shape).permute(order)
        return pixels.reshape(batch, channels, height * block, width * block)

    return Sample(
        op_type=op_type, inputs=[x], attributes={"blocksize": block, "mode": mode}, oracle=oracle
    )


@case("SpaceToDepth")
def space_to_depth(op_type: str, draw: Draw) -> Sample:
    block = draw.one_of(1, 2, 3)
    batch, channels, height, width = _image(draw)
    x = draw.values([batch, channels, height * block, width * block])

    def oracle(x: Any) -> Any:
        corners = itertools.product(range(block), repeat=2)
        return torch.cat([x[:, :, row::block, column::block] for row, column in corners], 1)

    return Sample(op_type=op_type, inputs=[x], attributes={"blocksize": block}, oracle=oracle)


@case("Trilu")
def triangle(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(1, 4), draw.integer(1, 4)])
    diagonal, upper = draw.integer(-2, 2), draw.flag()
    return Sample(
        op_type=op_type,
        inputs=[x, ints(diagonal)],
        attributes={"upper": int(upper)},
        oracle=lambda x: x.triu(diagonal) if upper else x.tril(diagonal),
    )


def _image(draw: Draw) -> tuple[int, int, int, int]:
    return draw.batch(), draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 2)
