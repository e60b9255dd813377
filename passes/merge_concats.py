"""Joining in one node what several join one behind the other."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.graph import graphs
from syncbn_convert.passes.fusion import handover
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConcats(RewritePass):
    """Let a Concat join what the Concats before it join.

    1. A Concat of the main graph that nothing but one other Concat of the same axis reads goes, and
       its inputs take its place.
    2. Left alone is what the graph returns, and values that are annotated with quantization.

    ```
    before   t = Concat <axis = 1> (a, b)  y = Concat <axis = 1> (t, c)
    after    y = Concat <axis = 1> (a, b, c)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that goes gets a record."""
        journal = Journal(logger)
        for node in list(model.graph):
            reader = _reader(node)
            if reader is not None:
                journal.add(node, "merged", f"into {graphs.label(reader)}")
                _merge(node, reader)
        return journal.result(model, modified=bool(journal.records))


def _reader(node: ir.Node) -> ir.Node | None:
    """Return the Concat that does the work of a node, too; None if there is none."""
    if not _is_concat(node):
        return None
    (y,) = node.outputs
    readers = {usage.node for usage in y.uses()}
    if y.is_graph_output() or handover.QUANTIZATION in y.meta or len(readers) != 1:
        return None
    (reader,) = readers
    same = _is_concat(reader) and reader.graph is node.graph
    return reader if same and _axis(reader) == _axis(node) else None


def _is_concat(node: ir.Node) -> bool:
    return node.op_type == "Concat" and node.domain in graphs.STANDARD_DOMAINS


def _axis(node: ir.Node) -> int | None:
    return node.attributes.get_int("axis", None)


def _merge(node: ir.Node, reader: ir.Node) -> None:
    (y,) = node.outputs
    joined = [part for value in reader.inputs for part in (node.inputs if value is y else [value])]
    reader.resize_inputs(len(joined))
    for index, value in enumerate(joined):
        reader.replace_input_with(index, value)
    handover.keep_notes(node, reader)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
