"""Normalization of each sample by itself."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import Expression
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.normalized import (
    Normalized,
    aligned,
    only_through_y,
    standardize,
)
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient("LayerNormalization")
def layer_normalization(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Over the last axes; scale and bias may broadcast."""
    only_through_y(tape, node, gradients)
    at = Normalized.of_node(tape, node, gradients)
    rank = at.rank
    first = node.attributes.get_int("axis", -1) % rank
    standard = standardize(at.x, [*range(first, rank)], at.epsilon)
    found: list[ir.Value | None] = [None] * len(node.inputs)
    if tape.wants(node, 0):
        found[0] = at.narrow(standard.input_gradient(at.dy * at.input(1)), 0)
    for index, terms in ((1, at.dy * standard.normal), (2, at.dy)):
        if tape.wants(node, index):
            target = node.inputs[index]
            assert target is not None
            summed = terms.sum_to(node.outputs[0], target)
            found[index] = at.narrow(Expression(tape, summed, terms.dtype), index)
    return found


@gradient("InstanceNormalization")
def instance_normalization(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Over the pixels of each channel."""
    at = Normalized.of_node(tape, node, gradients)
    rank = at.rank
    standard = standardize(at.x, [*range(2, rank)], at.epsilon)
    scale = aligned(at.input(1), tape.ints(-1, *[1] * (rank - 2)))
    dx = standard.input_gradient(at.dy * scale)
    return at.gradients(dx, at.dy * standard.normal, [0, *range(2, rank)])


@gradient("GroupNormalization")
def group_normalization(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Over the pixels of a group of channels, whose number must be known."""
    at = Normalized.of_node(tape, node, gradients)
    x = node.inputs[0]
    assert x is not None
    shape = x.shape
    groups = node.attributes["num_groups"].as_int()
    if shape is None or not isinstance(shape[1], int):
        tape.refuse(
            node, "the number of its channels is not known", "export it with that size fixed"
        )
    pixels = tape.op("ReduceProd", tape.op("Shape", x, start=2), keepdims=1)
    split = tape.op("Concat", tape.ints(-1, groups, shape[1] // groups), pixels, axis=0)
    folded, dy_folded = (aligned(value, split) for value in (at.x, at.dy))
    standard = standardize(folded, [2, 3], at.epsilon)
    scale = aligned(at.input(1), tape.ints(groups, -1, 1))
    dx = aligned(standard.input_gradient(dy_folded * scale), tape.shape_of(x))
    terms = dy_folded * standard.normal
    found: list[ir.Value | None] = [at.narrow(dx, 0) if tape.wants(node, 0) else None, None, None]
    for index, product in ((1, terms), (2, dy_folded)):
        if tape.wants(node, index):
            own = node.inputs[index]
            assert own is not None
            per_group = tape.static_shape(own) == [groups] and shape[1] != groups
            axes = tape.ints(0, 2, 3) if per_group else tape.ints(0, 3)
            summed = tape.op("ReduceSum", product.value, axes, keepdims=0)
            flat = tape.op("Reshape", summed, tape.ints(-1))
            found[index] = at.narrow(Expression(tape, flat, product.dtype), index)
    return found
