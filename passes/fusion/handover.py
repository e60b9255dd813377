"""What others know a value, a node or a weight by passes to what takes its place."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from syncbn_convert.form import provenance
from syncbn_convert.graph import graphs
from syncbn_convert.passes.fusion.weights import remove_unused

QUANTIZATION = "quant_parameter_tensor_names"
"""Where onnx_ir keeps the quantization annotation of a value."""


def take_place(new: ir.Value, old: ir.Value) -> None:
    """Let `new` be read in the place of `old`, under its name and with what is written about it."""
    new.name, new.doc_string = old.name, old.doc_string
    new.type = old.type or new.type
    new.shape = old.shape if old.shape is not None else new.shape
    for mine, others in ((new.metadata_props, old.metadata_props), (new.meta, old.meta)):
        mine.clear()
        mine.update(others)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def bypass(node: ir.Node, x: ir.Value, *, is_result: bool) -> None:
    """Remove a node, whose readers from now on read its input `x`.

    Args:
        node: The node.
        x: Its input.
        is_result: Whether `x` will hold what the node made.
    """
    y, graph = node.outputs[0], node.graph
    assert graph is not None
    others = [value for value in node.inputs if value is not None and value is not x]
    if is_result:
        take_place(x, y)
    else:
        y.replace_all_uses_with(x)
    graph.remove(node, safe=True)
    for value in others:
        remove_unused(value)


def rename_changed(values: Iterable[ir.Value], names: graphs.Names, suffix: str = "fused") -> None:
    """Give values that hold other numbers than before names that nothing else knows."""
    for value in values:
        node = value.producer()
        if node is not None and node.graph is not None:
            value.name = names.value(f"{value.name}/{suffix}")
            value.meta.pop(QUANTIZATION, None)


def keep_notes(old: ir.Node, new: ir.Node) -> None:
    """Write what is written about a node that goes to the one that does its work."""
    new.doc_string = new.doc_string or old.doc_string
    for key, text in old.metadata_props.items():
        if not key.startswith(provenance.PREFIX):
            new.metadata_props.setdefault(key, text)


def remove_unread(model: ir.Model) -> None:
    """Remove every Identity and Constant that nothing reads."""
    nodes = [node for node, _, _ in graphs.walk(model)]
    for node in reversed(nodes):
        if node.op_type in ("Constant", "Identity") and node.domain in graphs.STANDARD_DOMAINS:
            (output,) = node.outputs
            if node.graph is not None and not output.uses() and not output.is_graph_output():
                node.graph.remove(node, safe=True)
