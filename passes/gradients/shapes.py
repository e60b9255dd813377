"""Operators that change the shape or the order of elements."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.tape import GradientTape


@gradient("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any shape or axes, also computed ones."""
    (x, *others) = node.inputs
    assert x is not None
    shape = tape.shape_of(x)
    return [tape.op("Reshape", gradients[0], shape, allowzero=1), *[None] * len(others)]


@gradient("Transpose")
def transpose(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Any permutation."""
    if "perm" not in node.attributes:
        return [tape.op("Transpose", gradients[0])]
    permutation = node.attributes["perm"].as_ints()
    inverse = [permutation.index(axis) for axis in range(len(permutation))]
    return [tape.op("Transpose", gradients[0], perm=inverse)]
