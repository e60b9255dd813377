"""Nodes that pass on what comes in."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.graph import graphs, random_nodes
from syncbn_convert.passes.fusion import handover
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

_OF_ANY_NUMBER = frozenset(["Concat", "Max", "Mean", "Min", "Sum"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoveIdentities(RewritePass):
    """Let nodes go that pass on what comes in.

    1. Identity; Dropout in inference mode whose mask nothing reads; Concat, Sum, Mean, Max and Min
       of one input; Cast to the type that its input has. What read them reads their input.
    2. What the graph returns keeps its name: its maker takes it, where that can be.
    3. Left alone are those of bodies and functions, those of values that are annotated with
       quantization, and one whose input has a name that others know, where its output is returned.

    ```
    before   t = Relu(x)  y = Identity(t)
    after    y = Relu(x)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that goes gets a record."""
        journal = Journal(logger)
        for node in list(model.graph):
            if _passes_on(node, model) and _remove(node):
                journal.add(node, "removed")
        if journal.records:
            journal.note(f"nodes that pass on what comes in were removed ({len(journal.records)})")
        return journal.result(model, modified=bool(journal.records))


def _passes_on(node: ir.Node, model: ir.Model) -> bool:
    """Whether the first output of a node is its first input, and nothing reads another."""
    if node.domain not in graphs.STANDARD_DOMAINS or not node.inputs or not node.outputs:
        return False
    y, *others = node.outputs
    if handover.QUANTIZATION in y.meta or any(o.uses() or o.is_graph_output() for o in others):
        return False
    if node.op_type == "Dropout":
        return not random_nodes.training_dropout(node, graphs.opset_version(model), model)
    if node.op_type in _OF_ANY_NUMBER:
        return len(node.inputs) == 1
    if node.op_type == "Cast":
        x = node.inputs[0]
        return x is not None and x.dtype is not None and node.attributes["to"].value == int(x.dtype)
    return node.op_type == "Identity"


def _remove(node: ir.Node) -> bool:
    y, x, graph = node.outputs[0], node.inputs[0], node.graph
    if x is None or graph is None:
        return False
    maker, returned = x.producer(), y.is_graph_output()
    if returned and (maker is None or maker.graph is not graph or x.is_graph_output()):
        return False
    if maker is not None:
        handover.keep_notes(node, maker)
    handover.bypass(node, x, is_result=returned)
    return True
