"""Operators through which no gradient flows."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.tape import GradientTape


@gradient(
    "And",
    "ArgMax",
    "ArgMin",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "EyeLike",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "Or",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Xor",
)
def no_gradient(_tape: GradientTape, node: ir.Node, _gradients: Gradients) -> Gradients:
    """None flows: constant almost everywhere, or not computed from numbers."""
    return [None] * len(node.inputs)


@gradient("OneHot", "Range")
def from_integers(tape: GradientTape, node: ir.Node, _gradients: Gradients) -> Gradients:
    """None flows; refused where an input depends on a trained parameter."""
    for index, operand in enumerate(node.inputs):
        if tape.wants(node, index):
            tape.refuse(
                node,
                f"its input '{operand.name if operand else index}' depends on a trained parameter",
                "freeze that parameter",
            )
    return [None] * len(node.inputs)
