"""Loss operators of classification."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from syncbn_convert.passes.gradients.expression import Expression, arriving, forward
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.nondifferentiable import take_as_constant
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@dataclasses.dataclass(frozen=True)
class _Labels:
    """What the labels of a loss say.

    Attributes:
        one_hot: [N, C, ...], one where the class is the label.
        weight: [N, 1, ...], of each label's class; zero where it is ignored.
    """

    one_hot: Expression
    weight: Expression


@gradient("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    tape: GradientTape, node: ir.Node, gradients: Gradients
) -> Gradients:
    """Weights, which are constants, ignore_index and every reduction."""
    scores = forward(tape, node.inputs[0])
    log_probabilities = tape.op("LogSoftmax", scores.value, axis=1)
    probabilities = Expression(tape, tape.op("Exp", log_probabilities), scores.dtype)
    parts = []
    if gradients[0] is not None:
        labels = _labels(tape, node)
        share = _share(tape, node, labels, gradients)
        parts.append((probabilities - labels.one_hot) * share)
    if len(gradients) > 1 and gradients[1] is not None:
        dy = arriving(tape, node, gradients, 1)
        total = tape.op("ReduceSum", dy.value, tape.ints(1), keepdims=1)
        parts.append(dy - probabilities * Expression(tape, total, dy.dtype))
    dx = parts[0] + parts[1] if len(parts) == 2 else parts[0]
    return [dx.value, *[None] * (len(node.inputs) - 1)]


@gradient("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(
    tape: GradientTape, node: ir.Node, gradients: Gradients
) -> Gradients:
    """Weights, which are constants, ignore_index and every reduction."""
    labels = _labels(tape, node)
    dx = -(labels.one_hot * _share(tape, node, labels, gradients))
    return [dx.value, *[None] * (len(node.inputs) - 1)]


def _labels(tape: GradientTape, node: ir.Node) -> _Labels:
    (scores, labels, weights) = [*node.inputs, None][:3]
    assert scores is not None
    take_as_constant(tape, node, 2)
    classes, dtype = tape.rank(scores), tape.dtype(scores)
    column = tape.op("Cast", labels, to=int(ir.DataType.INT64))
    column = tape.op("Unsqueeze", column, tape.ints(1))
    ignored = None
    if "ignore_index" in node.attributes:
        index = tape.ints(node.attributes["ignore_index"].as_int())
        ignored = Expression(tape, tape.op("Equal", column, index), ir.DataType.BOOL)
        column = tape.op("Where", ignored.value, tape.ints(0), column)
    zero, one = (tape.constant(number, ir.DataType.INT64) for number in (0, 1))
    count = tape.op("Squeeze", tape.op("Shape", scores, start=1, end=2), tape.ints(0))
    numbers = tape.op("Range", zero, count, one)
    numbers = tape.op("Reshape", numbers, tape.ints(1, -1, *[1] * (classes - 2)))
    one_hot = tape.op("Cast", tape.op("Equal", column, numbers), to=int(dtype))
    given = tape.constant([1.0], dtype) if weights is None else weights
    place = tape.op("Mul", column, zero) if weights is None else column
    weight = Expression(tape, tape.op("Gather", given, place), dtype)
    if ignored is not None:
        weight = weight * (~ignored).cast(dtype)
    return _Labels(Expression(tape, one_hot, dtype), weight)


def _share(tape: GradientTape, node: ir.Node, labels: _Labels, gradients: Gradients) -> Expression:
    """Return what each label's own loss has in the result, times its gradient; [N, 1, ...]."""
    dy = arriving(tape, node, gradients)
    reduction = node.attributes.get_string("reduction", "mean")
    if reduction == "none":
        column = tape.op("Unsqueeze", dy.value, tape.ints(1))
        return labels.weight * Expression(tape, column, dy.dtype)
    if reduction == "sum":
        return labels.weight * dy
    total = tape.op("ReduceSum", labels.weight.value, keepdims=0)
    return labels.weight * (dy / Expression(tape, total, dy.dtype))
