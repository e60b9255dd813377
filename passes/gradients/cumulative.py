"""Running sums and sums of products."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient("CumSum")
def cumulative_sum(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Exclusive and reverse."""
    reverse = node.attributes.get_int("reverse", 0)
    exclusive = node.attributes.get_int("exclusive", 0)
    (_, axis) = node.inputs
    dx = tape.op("CumSum", gradients[0], axis, reverse=1 - reverse, exclusive=exclusive)
    return [dx, None]


@gradient("Einsum")
def einsum(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Without an ellipsis, and without a letter twice in one operand."""
    terms, result = _equation(tape, node)
    return [
        _einsum_operand(tape, node, gradients[0], terms, result, index)
        if tape.wants(node, index)
        else None
        for index in range(len(terms))
    ]


def _einsum_operand(
    tape: GradientTape,
    node: ir.Node,
    gradient: ir.Value | None,
    terms: list[str],
    result: str,
    index: int,
) -> ir.Value:
    """Contract the gradient with the other operands; what was summed alone is expanded."""
    own, others = terms[index], [term for i, term in enumerate(terms) if i != index]
    known = set(result).union(*others)
    kept = "".join(letter for letter in own if letter in known)
    operands = [value for i, value in enumerate(node.inputs) if i != index]
    equation = ",".join([result, *others]) + "->" + kept
    contracted = tape.op("Einsum", gradient, *operands, equation=equation)
    if kept == own:
        return contracted
    lost = [axis for axis, letter in enumerate(own) if letter not in known]
    operand = node.inputs[index]
    assert operand is not None
    narrow = tape.op("Unsqueeze", contracted, tape.ints(*lost))
    return tape.op("Expand", narrow, tape.shape_of(operand))


def _equation(tape: GradientTape, node: ir.Node) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if "." in equation or any(len(set(term)) != len(term) for term in terms):
        tape.refuse(
            node,
            f"its equation '{equation}' has an ellipsis or a letter twice in one operand",
            "write every axis with a letter of its own",
        )
    return terms, result
