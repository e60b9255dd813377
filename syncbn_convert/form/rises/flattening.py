"""Operators on the rows of a matrix until opset 12, on one axis since."""

from __future__ import annotations

from syncbn_convert.form.rises.site import Site
from syncbn_convert.form.rises.steps import rule


@rule("Hardmax", "LogSoftmax", "Softmax", opset=13)
def rows(site: Site) -> None:
    """Work on the last axis, of the input made a matrix unless `axis` is the last one."""
    axis = site.pop("axis")
    axis = 1 if axis is None else axis
    shape = site.x.shape
    if axis == -1 or (shape is not None and axis == len(shape) - 1):
        site.become(site.node.op_type, [site.x], {"axis": -1})
        return
    x = site.x
    rows = site.add(site.node.op_type, site.add("Flatten", x, axis=axis), axis=-1)
    site.become("Reshape", [rows, site.add("Shape", x)], {})
