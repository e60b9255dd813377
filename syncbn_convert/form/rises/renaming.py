"""What is said in other words, or was left to a default that changed its meaning."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.form.rises.site import Site
from syncbn_convert.form.rises.steps import keep, rule

_NEW_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@rule("Pad", opset=2)
def paddings(site: Site) -> None:
    """Call them pads."""
    pads = site.pop("paddings")
    if pads is not None:
        site.node.attributes.add(ir.AttrInt64s("pads", pads))
    keep(site)


@rule("GlobalLpPool", "LpPool", opset=2)
def whole_norm(site: Site) -> None:
    """Write the norm as an integer."""
    norm = site.pop("p")
    if norm is not None and norm != int(norm):
        site.refuse(f"its norm is {norm:g}, and that opset has whole ones only")
    site.node.attributes.add(ir.AttrInt64("p", 2 if norm is None else int(norm)))
    keep(site)


@rule("Concat", opset=4)
def axis_of_channels(site: Site) -> None:
    """Write the axis that was taken where none is given."""
    if "axis" not in site.node.attributes:
        site.node.attributes.add(ir.AttrInt64("axis", 1))
    keep(site)


@rule("Cast", opset=6)
def type_as_number(site: Site) -> None:
    """Write the type as a number instead of its name."""
    site.node.attributes.add(ir.AttrInt64("to", int(ir.DataType[site.pop("to").upper()])))
    keep(site)


@rule("Scan", opset=9)
def scan(site: Site) -> None:
    """Refuse: the operator of opset 8 scans a batch."""
    site.refuse("it scans each sample of a batch, and later ones do not")


@rule("Scatter", opset=11)
def scatter(site: Site) -> None:
    """Take the new name."""
    site.become("ScatterElements", site.node.inputs)


@rule("RoiAlign", opset=16)
def regions(site: Site) -> None:
    """Write the coordinates that were the only ones."""
    mode = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
    site.node.attributes.add(mode)


@rule("GridSample", opset=20)
def grid(site: Site) -> None:
    """Call the modes of interpolation as other operators do."""
    mode = site.pop("mode") or "bilinear"
    site.node.attributes.add(ir.AttrString("mode", _NEW_MODES.get(mode, mode)))
    keep(site)


@rule("GroupNormalization", opset=21)
def groups(site: Site) -> None:
    """Repeat scale and bias of a group for each of its channels."""
    count = site.node.attributes.get_int("num_groups", 1)
    channels = site.add("Shape", site.x, start=1, end=2)
    size = site.add("Div", channels, site.constant([count]))
    repeats = site.add("Concat", site.constant([1]), size, axis=0)
    for index in (1, 2):
        column = site.add("Reshape", site.input(index), site.constant([-1, 1]))
        matrix = site.add("Expand", column, repeats)
        site.set_input(index, site.add("Reshape", matrix, site.constant([-1])))
    keep(site)
