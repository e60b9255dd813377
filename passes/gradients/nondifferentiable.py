"""Operators through which no gradient flows."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


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
    """None flows; refused where an input is computed from a trained parameter."""
    for index in range(len(node.inputs)):
        take_as_constant(tape, node, index)
    return [None] * len(node.inputs)


def take_as_constant(tape: GradientTape, node: ir.Node, index: int) -> None:
    """Refuse an input that is computed from trained parameters; an initializer is not trained."""
    if tape.wants(node, index):
        operand = node.inputs[index]
        assert operand is not None
        if operand.producer() is not None:
            tape.refuse(
                node,
                f"its input '{operand.name}' depends on a trained parameter",
                "freeze that parameter",
            )
