"""Upsample, which became Resize in opset 10, and Resize, which was given coordinates in 11."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.form.rises.site import Site
from syncbn_convert.form.rises.steps import rule

_ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@rule("Upsample", opset=7)
def scales_of_all_axes(site: Site) -> None:
    """Write the scales of height and width as those of all four axes."""
    height, width = site.pop("height_scale"), site.pop("width_scale")
    mode = site.pop("mode")
    if height is None or width is None:
        site.refuse("it lacks height_scale or width_scale")
    attributes: dict[str, Any] = {
        "mode": "linear" if mode == "bilinear" else mode or "nearest",
        "scales": [1.0, 1.0, height, width],
    }
    site.become("Upsample", [site.x], attributes)


@rule("Upsample", opset=9)
def scales_as_input(site: Site) -> None:
    """Write the scales as an input."""
    scales = site.pop("scales")
    site.become("Upsample", [site.x, site.constant(scales, ir.DataType.FLOAT)])


@rule("Upsample", opset=10)
def upsample_is_resize(site: Site) -> None:
    """Take the new name."""
    site.become("Resize", site.node.inputs)


@rule("Resize", opset=11)
def coordinates(site: Site) -> None:
    """Write the coordinates: output index / scale, rounded to the nearest as ONNX Runtime does.

    That rounds down where it enlarges and up where it shrinks, axis by axis; what does both at
    once takes two nodes.
    """
    mode = site.pop("mode") or "nearest"
    x, scales = site.x, site.input(1)
    none = site.constant([], ir.DataType.FLOAT)
    attributes = {"mode": mode, **_ASYMMETRIC}
    if mode == "nearest":
        known = _known(scales)
        if known is None or (known.min() < 1 and known.max() > 1):
            one = site.constant([1.0], ir.DataType.FLOAT)
            larger, scales = site.add("Max", scales, one), site.add("Min", scales, one)
            x = site.add("Resize", x, none, larger, **attributes)
        if known is None or known.min() < 1:
            attributes["nearest_mode"] = "ceil"
    site.become("Resize", [x, none, scales], attributes)


def _known(scales: ir.Value) -> np.ndarray[Any, np.dtype[Any]] | None:
    if scales.const_value is not None and not scales.is_graph_input():
        return scales.const_value.numpy()
    node = scales.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor().numpy()
