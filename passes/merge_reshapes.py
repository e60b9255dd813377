"""Reshapes one behind the other, and Transposes that move nothing between them."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.graph import constants, graphs
from syncbn_convert.passes.fusion import handover
from syncbn_convert.passes.fusion.affine import Refusal
from syncbn_convert.passes.fusion.known_shapes import Shapes, Size
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeReshapes(RewritePass):
    """Let the last of several Reshapes do the work of all.

    1. A Reshape goes that nothing but another Reshape to a constant shape reads; so does a
       Transpose that only moves axes of size 1, which keeps the order of the elements.
    2. A size that is copied (0) must be one that its new input has at the same axis.
    3. Left alone is what the graph returns, and values that are annotated with quantization.

    ```
    before   s = Reshape(x, [2, 3, 1])  t = Transpose <perm = [0, 2, 1]> (s)  y = Reshape(t, [6])
    after    y = Reshape(x, [6])
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that goes gets a record."""
        journal = Journal(logger)
        merger = _Merger(model)
        for node in reversed(list(model.graph)):
            while (before := merger.spare(node)) is not None:
                journal.add(before, "merged", f"into {graphs.label(node)}")
                x = before.inputs[0]
                assert x is not None
                handover.keep_notes(before, node)
                handover.bypass(before, x, is_result=False)
        journal.records.reverse()
        return journal.result(model, modified=bool(journal.records))


class _Merger:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._shapes = Shapes(model)

    def spare(self, node: ir.Node) -> ir.Node | None:
        """Return the node before a Reshape that it does not need; None if there is none."""
        target = self._target(node)
        t = node.inputs[0] if node.inputs else None
        before = t.producer() if t is not None else None
        if target is None or t is None or before is None or before.graph is not node.graph:
            return None
        if t.is_graph_output() or handover.QUANTIZATION in t.meta or len(list(t.uses())) != 1:
            return None
        if before.domain not in graphs.STANDARD_DOMAINS or not self._keeps_order(before):
            return None
        old, new = self._sizes(t), self._sizes(before.inputs[0])
        copied = [axis for axis, size in enumerate(target) if size == 0]
        same = all(old[a] is not None and old[a : a + 1] == new[a : a + 1] for a in copied)
        return before if same else None

    def _target(self, node: ir.Node) -> list[int] | None:
        if node.op_type != "Reshape" or node.domain not in graphs.STANDARD_DOMAINS:
            return None
        value = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = constants.constant_tensor(value, self._model) if value is not None else None
        target = None if tensor is None else [int(size) for size in tensor.numpy()]
        empties = node.attributes.get_int("allowzero", 0) and target is not None and 0 in target
        return None if empties else target

    def _keeps_order(self, node: ir.Node) -> bool:
        if node.op_type in ("Reshape", "Flatten"):
            return True
        if node.op_type != "Transpose":
            return False
        sizes = self._sizes(node.inputs[0])
        perm = node.attributes.get_ints("perm", ()) or list(reversed(range(len(sizes))))
        moved = [axis for axis in perm if axis < len(sizes) and sizes[axis] != 1]
        return bool(sizes) and moved == sorted(moved)

    def _sizes(self, value: ir.Value | None) -> list[Size]:
        if value is None:
            return []
        try:
            return self._shapes.of(value)
        except Refusal:
            return []
