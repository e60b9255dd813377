"""Dropout."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import Expression, arriving, forward
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient("Dropout")
def dropout(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """The mask is the forward one; without training_mode it is the identity."""
    (_, ratio, training) = [*node.inputs, None, None][:3]
    others = [None] * (len(node.inputs) - 1)
    known = tape.known(training)
    if training is None or (known is not None and not known.item()):
        return [gradients[0], *others]
    mask = tape.forward_output(node, 1, ir.DataType.BOOL)
    dy = arriving(tape, node, gradients)
    kept = dy * Expression(tape, mask, ir.DataType.BOOL).cast(dy.dtype)
    share = 0.5 if ratio is None else forward(tape, ratio).cast(dy.dtype)
    left = dy.wrap(1.0) - share
    scale = forward(tape, training).choose(left, 1.0)
    return [(kept / scale).value, *others]
