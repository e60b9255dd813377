"""Normalization by statistics of the batch, of the global batch, and by moving ones."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert import gradient_form, training_form
from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.tape import GradientTape


@gradient(training_form.ALL_REDUCE, domain=training_form.DOMAIN)
def all_reduce(_tape: GradientTape, _node: ir.Node, gradients: Gradients) -> Gradients:
    """Unchanged: what follows the total is computed alike on all replicas."""
    return gradients


@gradient(training_form.OP_TYPE, domain=training_form.DOMAIN)
def sync_batch_normalization(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """One node with one AllReduce; none flows through the moving statistics."""
    _only_through_y(tape, node, gradients)
    saved = [
        tape.forward_output(node, index, ir.DataType.DOUBLE)
        for index in range(training_form.SAVED.start, training_form.SAVED.stop)
    ]
    found = tape.ops(
        gradient_form.OP_TYPE,
        [gradients[0], *node.inputs[:2], *saved],
        3,
        domain=training_form.DOMAIN,
        axis=node.attributes.get_int("axis", 1),
        group_size=node.attributes.get_int("group_size", 0),
        stash_type=node.attributes.get_int("stash_type", 1),
    )
    return [*found, None, None]


def _only_through_y(tape: GradientTape, node: ir.Node, gradients: Gradients) -> None:
    if any(gradient is not None for gradient in gradients[1:]):
        tape.refuse(
            node,
            "the loss depends on its moving statistics or its saved ones",
            "let the loss depend on its output alone",
        )
