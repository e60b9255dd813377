"""Dropout."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.form.rises.site import Site
from syncbn_convert.form.rises.steps import keep, rule
from syncbn_convert.graph import graphs


@rule("Dropout", opset=7)
def without_mode(site: Site) -> None:
    """Leave it in inference mode, which is the only one until opset 11."""
    if not site.pop("is_test"):
        site.notes.append(
            f"Dropout '{graphs.label(site.node)}' was in training mode and is in inference mode now"
        )
    keep(site)


@rule("Dropout", opset=12)
def ratio_as_input(site: Site) -> None:
    """Write the ratio as an input; refuse a mask that is read, which nothing defined so far."""
    masks = site.node.outputs[1:]
    if any(mask.uses() or mask.is_graph_output() for mask in masks):
        site.refuse(f"its mask '{masks[0].name}' is used, and without training there was none")
    ratio = site.pop("ratio")
    if ratio is not None:
        site.set_input(1, site.constant(ratio, ir.DataType.FLOAT))
    keep(site)
