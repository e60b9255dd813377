"""What only constants feed, as initializers."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import opset
from syncbn_convert.graph import constant_evaluation, constants, graphs, value_types
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.passes.fusion.known_shapes import Shapes
from syncbn_convert.passes.fusion.reshape_targets import Targets
from syncbn_convert.passes.fusion.weights import WeightStore, remove_unused
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

_LARGEST_GROWTH = 1 << 16
"""Bytes that a result may be larger than what it is computed of."""
_LARGEST = 1 << 26
"""Bytes; what is computed is held in memory, and weights in files are not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldConstants(RewritePass):
    """Compute what only constants feed, and keep the results as initializers.

    1. A Constant of the main graph becomes an initializer of the same name.
    2. So does what operators that draw nothing compute of constants, or of sizes that the model
       states, by ONNX's reference implementation; initializers that only they read go.
    3. A Reshape to a shape that is computed gets a constant, if all sizes are known but those that
       are copied from the same axis (0) and one (-1), such as that of the batch.
    4. Left alone is what the graph returns, what a caller may feed, what would be more than 64 KiB
       larger than what it is computed of or than 64 MiB, and what bodies and functions hold.

    ```
    before   s = Shape(w)  z = Expand(zero, s)  y = Conv(x, w, z)
    after    y = Conv(x, w, z)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that goes gets a record."""
        journal = Journal(logger)
        store = WeightStore(model)
        while _pass_over(model, store, journal):
            pass  # behind what has become constant, more shapes are known
        if journal.records:
            opset.raise_ir_version(model, FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS)
            journal.note(
                f"nodes that only constants feed became constants ({len(journal.records)})"
            )
        return journal.result(model, modified=bool(journal.records))


def _pass_over(model: ir.Model, store: WeightStore, journal: Journal) -> bool:
    """Fold what is known; return whether a further shape may be known then."""
    more = False
    with value_types.stated(model) as known:
        targets = Targets(model, Shapes(model, known))
        for node in list(model.graph):
            if node.graph is None:
                continue
            if _may_be_known(node) and _fold(node, model):
                journal.add(node, "folded")
                more |= node.op_type != "Constant"
            elif node.op_type == "Reshape" and _fix_target(node, targets, store):
                journal.add(node, "given a constant shape")
                more = True
    return more


def _fix_target(node: ir.Node, targets: Targets, store: WeightStore) -> bool:
    """Give a Reshape a constant target instead of one that is computed."""
    target = node.inputs[1] if len(node.inputs) > 1 else None
    if target is None or target.producer() is None or node.domain not in graphs.STANDARD_DOMAINS:
        return False
    sizes = targets.constant(node)
    if sizes is None:
        return False
    tensor = ir.tensor(np.array(sizes, np.int64))
    value = store.constant(node, tensor, f"{target.name}/folded")
    node.replace_input_with(1, value)
    remove_unused(target)
    return True


def _may_be_known(node: ir.Node) -> bool:
    """Whether it is worth while to ask for the results of a node."""
    if node.domain not in graphs.STANDARD_DOMAINS:
        return False
    if node.op_type in constant_evaluation.OF_SHAPES:
        return True
    if node.op_type not in constant_evaluation.OPERATORS:
        return False
    return all(
        value is None
        or value.is_initializer()
        or graphs.reads_type_only(node, index)
        or _is_shape(value)
        for index, value in enumerate(node.inputs)
    )


def _is_shape(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == "Shape"


def _fold(node: ir.Node, model: ir.Model) -> bool:
    """Make initializers of the outputs of a node, if all are known; return whether they are."""
    outputs = [value for value in node.outputs if value.uses()]
    if not outputs or any(value.is_graph_output() for value in node.outputs):
        return False
    tensors = [constants.constant_tensor(value, model) for value in outputs]
    known = [tensor for tensor in tensors if tensor is not None]
    if len(known) < len(outputs) or _is_too_large(node, known):
        return False
    operands = [value for value in node.inputs if value is not None]
    for value, tensor in zip(outputs, known, strict=True):
        constants.replace_by_initializer(value, tensor, model.graph)
    for operand in operands:
        remove_unused(operand)
    return True


def _is_too_large(node: ir.Node, results: list[ir.TensorProtocol]) -> bool:
    if node.op_type == "Constant":
        return False
    given = (value.const_value for value in node.inputs if value is not None)
    held = sum(tensor.nbytes for tensor in given if tensor is not None)
    size = sum(tensor.nbytes for tensor in results)
    return size > min(held + _LARGEST_GROWTH, _LARGEST)
