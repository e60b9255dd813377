"""Samples of reductions, softmax and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.gradients.cases.registry import case
from tests.gradients.sample import Draw, Sample, ints

_REDUCTIONS: dict[str, Callable[[Any, list[int], bool], Any]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


@case(*_REDUCTIONS)
def reduction(op_type: str, draw: Draw) -> Sample:
    x = _operand(op_type, draw, draw.shape(2, 4))
    axes = [axis for axis in draw.axes(x.ndim, low=1) if not draw.empty or axis % x.ndim] or [1]
    keep = draw.flag()
    return Sample(
        op_type=op_type,
        inputs=[x, ints(axes)],
        attributes={"keepdims": int(keep)},
        oracle=lambda x: _REDUCTIONS[op_type](x, axes, keep),
    )


@case(*_REDUCTIONS)
def reduction_without_axes(op_type: str, draw: Draw) -> Sample:
    shape = tuple(draw.integer(1, 4) for _ in range(draw.integer(1, 3)))
    x = _operand(op_type, draw, shape)
    keep, empty = draw.flag(), draw.flag()
    return Sample(
        op_type=op_type,
        inputs=[x, ints([])] if empty else [x],
        attributes={"keepdims": int(keep)},
        oracle=lambda x: _REDUCTIONS[op_type](x, list(range(x.ndim)), keep),
    )


@case("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
def reduction_of_nothing(op_type: str, draw: Draw) -> Sample:
    x = _operand(op_type, draw, draw.shape())
    return Sample(
        op_type=op_type,
        inputs=[x, ints([])] if draw.flag() else [x],
        attributes={"noop_with_empty_axes": 1, "keepdims": int(draw.flag())},
        oracle=torch.clone,
    )


@case("ReduceProd")
def product(op_type: str, draw: Draw) -> Sample:
    x = draw.values((draw.batch(), draw.integer(1, 3), draw.integer(1, 3)), 0.5, 1.5)
    x[draw.rng().uniform(size=x.shape) < 0.3] = 0.0
    axis, keep = draw.one_of(1, 2, -1), draw.flag()
    return Sample(
        op_type=op_type,
        inputs=[x, ints([axis])],
        attributes={"keepdims": int(keep)},
        oracle=lambda x: x.prod(axis, keepdim=keep),
    )


@case("Softmax", "LogSoftmax")
def softmax(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape(), -5.0, 5.0)
    axis = draw.axis(x.ndim)
    function = torch.softmax if op_type == "Softmax" else torch.log_softmax
    default = axis == -1 and draw.flag()
    return Sample(
        op_type=op_type,
        inputs=[x],
        attributes={} if default else {"axis": axis},
        oracle=lambda x: function(x, axis),
    )


@case("CumSum")
def running_sum(op_type: str, draw: Draw) -> Sample:
    x = draw.values(draw.shape())
    axis, exclusive, reverse = draw.axis(x.ndim), draw.flag(), draw.flag()

    def oracle(x: Any) -> Any:
        turned = x.flip(axis) if reverse else x
        total = turned.cumsum(axis)
        total = total - turned if exclusive else total
        return total.flip(axis) if reverse else total

    return Sample(
        op_type=op_type,
        inputs=[x, ints(axis)],
        attributes={"exclusive": int(exclusive), "reverse": int(reverse)},
        oracle=oracle,
    )


@case("Einsum")
def einsum(op_type: str, draw: Draw) -> Sample:
    equation = draw.one_of(
        "ij,jk->ik",
        "bij,bjk->bik",
        "bhid,bhjd->bhij",
        "ij->ji",
        "ij->i",
        "ij,ij->",
        "i,j",
        "ab,bc,c->a",
    )
    sizes = {letter: draw.integer(1, 3) for letter in "acdhijk"} | {"b": draw.batch()}
    terms = equation.partition("->")[0].split(",")
    return Sample(
        op_type=op_type,
        inputs=[draw.values([sizes[letter] for letter in term]) for term in terms],
        attributes={"equation": equation},
        oracle=lambda *operands: torch.einsum(equation, *operands),
    )


def _operand(op_type: str, draw: Draw, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if op_type in ("ReduceMax", "ReduceMin"):
        return draw.distinct(shape)
    if op_type == "ReduceLogSum":
        return draw.values(shape, 0.5, 2.0)
    return draw.values(shape, kinks=[0.0])
