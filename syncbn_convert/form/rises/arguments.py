"""Attributes that became inputs."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.form.rises import guesses
from syncbn_convert.form.rises.site import Site
from syncbn_convert.form.rises.steps import keep, rule

_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
)


@rule("Reshape", opset=5)
def shape(site: Site) -> None:
    """Write the shape as an input."""
    site.pop("consumed_inputs")
    _move(site, "shape", 1)


@rule("Slice", opset=10)
def bounds(site: Site) -> None:
    """Write starts, ends and axes as inputs."""
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        _move(site, name, index)


@rule("TopK", opset=10)
def count(site: Site) -> None:
    """Write k as an input."""
    site.set_input(1, site.constant([site.pop("k")]))


@rule("Clip", opset=11)
def limits(site: Site) -> None:
    """Write the limits as inputs of the input's type."""
    for index, name in enumerate(("min", "max"), start=1):
        limit = site.pop(name)
        if limit is not None:
            site.set_input(index, site.constant(limit, guesses.dtype_of(site.x)))


@rule("Pad", opset=11)
def padding(site: Site) -> None:
    """Write pads and value as inputs, the value in the input's type."""
    _move(site, "pads", 1)
    value = site.pop("value")
    if value:
        site.set_input(2, site.constant(value, guesses.dtype_of(site.x)))


@rule("ReduceSum", "Squeeze", "Unsqueeze", opset=13)
@rule(*_REDUCTIONS, opset=18)
def axes(site: Site) -> None:
    """Write the axes as an input; none are all, as before."""
    _move(site, "axes", 1)
    keep(site)


@rule("Split", opset=13)
def sizes(site: Site) -> None:
    """Write the sizes as an input."""
    _move(site, "split", 1)
    keep(site)


@rule("Split", opset=18)
def pieces(site: Site) -> None:
    """Say how many pieces there are where no sizes are given."""
    if len(site.node.inputs) < 2 or site.node.inputs[1] is None:
        site.node.attributes.add(ir.AttrInt64("num_outputs", len(site.node.outputs)))


@rule("DFT", opset=20)
def axis(site: Site) -> None:
    """Write the axis as an input."""
    given = site.pop("axis")
    site.set_input(2, site.constant(1 if given is None else given))


def _move(site: Site, name: str, index: int) -> None:
    values = site.pop(name)
    if values:
        site.set_input(index, site.constant(list(values)))
