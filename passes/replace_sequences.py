"""Sequences of pieces, of which each is taken out again, as a Split."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import opset
from syncbn_convert.graph import constants, graphs, value_types
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.passes.fusion import handover
from syncbn_convert.passes.fusion.affine import Refusal
from syncbn_convert.passes.fusion.known_shapes import Shapes
from syncbn_convert.passes.fusion.weights import WeightStore, remove_unused
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

_FIRST_OPSET_WITH_SIZES_AS_INPUT = 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplaceSequences(RewritePass):
    """Write as a Split what only becomes a sequence so that its pieces can be taken out.

    1. Of a SplitToSequence with constant sizes, along an axis whose size is known, that only
       SequenceAt with constant indices read. Pieces that nobody takes are split off and not read.
    2. Left alone are other sequences, and those of bodies and functions.

    ```
    before   s = SplitToSequence <axis = 1> (x, [2, 2])  y = SequenceAt(s, 0)  z = SequenceAt(s, 1)
    after    y, z = Split <axis = 1> (x, [2, 2])
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every SplitToSequence that is replaced gets a record."""
        journal = Journal(logger)
        found = [node for node in model.graph if _is_standard(node, "SplitToSequence")]
        if not found or graphs.opset_version(model) < _FIRST_OPSET_WITH_SIZES_AS_INPUT:
            return journal.result(model, modified=False)
        with value_types.stated(model) as known:
            shapes, store = Shapes(model, known), WeightStore(model)
            for node in found:
                sizes, taken = _sizes(node, model, shapes), _taken(node, model)
                if sizes is None or not taken or not _are_within(taken, len(sizes)):
                    continue
                journal.add(node, "replaced", f"by a Split into {len(sizes)}")
                _replace(node, sizes, taken, store)
        if journal.records:
            opset.raise_ir_version(model, FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS)
        return journal.result(model, modified=bool(journal.records))


def _is_standard(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in graphs.STANDARD_DOMAINS


def _sizes(node: ir.Node, model: ir.Model, shapes: Shapes) -> list[int] | None:
    """Return the sizes of the pieces along the axis; None where they are not known."""
    x, given = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    tensor = constants.constant_tensor(given, model) if given is not None else None
    if x is None or tensor is None:
        return None
    try:
        size = shapes.of(x)[node.attributes.get_int("axis", 0)]
    except (Refusal, IndexError):
        return None
    if not isinstance(size, int) or size < 1:
        return None
    array = tensor.numpy()
    if array.ndim:
        sizes = [int(piece) for piece in array]
    elif array > 0:
        sizes = [min(int(array), size - start) for start in range(0, size, int(array))]
    else:
        return None
    return sizes if sum(sizes) == size else None


def _taken(node: ir.Node, model: ir.Model) -> list[tuple[ir.Node, int]]:
    """Return the readers of a sequence with the index that each takes; none where others read."""
    (sequence,) = node.outputs
    if sequence.is_graph_output():
        return []
    taken: list[tuple[ir.Node, int]] = []
    for reader in {usage.node: None for usage in sequence.uses()}:
        if not _is_standard(reader, "SequenceAt") or reader.graph is not node.graph:
            return []
        index = reader.inputs[1]
        tensor = constants.constant_tensor(index, model) if index is not None else None
        if tensor is None:
            return []
        taken.append((reader, int(tensor.numpy())))
    return taken


def _are_within(taken: Sequence[tuple[ir.Node, int]], count: int) -> bool:
    return all(-count <= index < count for _, index in taken)


def _replace(
    node: ir.Node, sizes: list[int], taken: Sequence[tuple[ir.Node, int]], store: WeightStore
) -> None:
    graph, x = node.graph, node.inputs[0]
    assert graph is not None
    assert x is not None
    constant = store.constant(node, ir.tensor(np.array(sizes, np.int64)), f"{x.name}/split")
    split = ir.node(
        "Split",
        [x, constant],
        {"axis": node.attributes.get_int("axis", 0)},
        num_outputs=len(sizes),
        name=node.name,
    )
    for output in split.outputs:
        output.name = store.names.value(f"{x.name}/piece")
    graph.insert_before(node, split)
    handover.keep_notes(node, split)
    for reader, index in taken:
        y, piece = reader.outputs[0], split.outputs[index]
        if piece.uses() or piece.is_graph_output():  # taken twice: the second passes it on
            reader.op_type = "Identity"
            reader.resize_inputs(1)
            reader.replace_input_with(0, piece)
            continue
        handover.take_place(piece, y)
        y.name = None
        operand = reader.inputs[1]
        graph.remove(reader, safe=True)
        if operand is not None:
            remove_unused(operand)
    sizes_given = node.inputs[1]
    graph.remove(node, safe=True)
    if sizes_given is not None:
        remove_unused(sizes_given)
