"""Normalization by statistics of the global batch, of a batch, or by moving ones."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.form import gradient_form, training_form
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.normalized import (
    Normalized,
    Standardized,
    aligned,
    only_through_y,
    standardize,
)
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient(training_form.ALL_REDUCE, domain=training_form.DOMAIN)
def all_reduce(_tape: GradientTape, _node: ir.Node, gradients: Gradients) -> Gradients:
    """Unchanged: what follows the total is computed alike on all replicas."""
    return gradients


@gradient(training_form.OP_TYPE, domain=training_form.DOMAIN)
def sync_batch_normalization(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """One node with one AllReduce; none flows through the moving statistics."""
    only_through_y(tape, node, gradients)
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


@gradient("BatchNormalization")
def batch_normalization(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """By moving statistics, which are constants to it; or in training mode by the batch's own."""
    only_through_y(tape, node, gradients)
    for index in (3, 4):
        if tape.wants(node, index):
            tape.refuse(
                node,
                "its moving statistics depend on a trained parameter",
                "freeze that parameter",
            )
    at = Normalized.of_node(tape, node, gradients)
    rank = at.rank
    shape = tape.ints(-1, *[1] * (rank - 2))
    scale = aligned(at.input(1), shape)
    if node.attributes.get_int("training_mode", 0):
        standard = standardize(at.x, [0, *range(2, rank)], at.epsilon)
        dx = standard.input_gradient(at.dy * scale)
    else:
        mean, variance = (aligned(at.input(index), shape) for index in (3, 4))
        inverse = 1.0 / (variance + at.epsilon).apply("Sqrt")
        standard = Standardized((at.x - mean) * inverse, inverse, tape.ints(0))
        dx = at.dy * (scale * inverse)
    return at.gradients(dx, at.dy * standard.normal, [0, *range(2, rank)])
