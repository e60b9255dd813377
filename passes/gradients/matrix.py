"""Products of matrices."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import Gradients, gradient


@gradient("Gemm")
def gemm(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Transposed or not, alpha and beta, C broadcast."""
    a, b, *c = node.inputs
    (dy,) = gradients
    assert a is not None
    assert dy is not None
    alpha = node.attributes.get_float("alpha", 1.0)
    trans_a = node.attributes.get_int("transA", 0)
    trans_b = node.attributes.get_int("transB", 0)
    found: list[ir.Value | None] = [None] * len(node.inputs)
    if tape.wants(node, 0):
        found[0] = (
            tape.op("Gemm", b, dy, alpha=alpha, transA=trans_b, transB=1)
            if trans_a
            else tape.op("Gemm", dy, b, alpha=alpha, transB=1 - trans_b)
        )
    if tape.wants(node, 1):
        found[1] = (
            tape.op("Gemm", dy, a, alpha=alpha, transA=1, transB=trans_a)
            if trans_b
            else tape.op("Gemm", a, dy, alpha=alpha, transA=1 - trans_a)
        )
    if c and c[0] is not None and tape.wants(node, 2):
        beta = node.attributes.get_float("beta", 1.0)
        summed = tape.sum_to(dy, node.outputs[0], c[0])
        found[2] = summed if beta == 1.0 else tape.op("Mul", summed, tape.like(beta, c[0]))
    return found


@gradient("MatMul")
def matmul(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Vectors, matrices, and batches of them, broadcast."""
    a, b = node.inputs
    (dy,) = gradients
    assert a is not None
    assert b is not None
    assert dy is not None
    ranks = tape.rank(a), tape.rank(b)
    if ranks == (2, 2):
        return [
            tape.op("Gemm", dy, b, transB=1) if tape.wants(node, 0) else None,
            tape.op("Gemm", a, dy, transA=1) if tape.wants(node, 1) else None,
        ]
    left, right = _as_matrix(tape, a, 0), _as_matrix(tape, b, -1)
    if ranks[0] == 1:
        dy = tape.op("Unsqueeze", dy, tape.ints(-2 if ranks[1] > 1 else 0))
    if ranks[1] == 1:
        dy = tape.op("Unsqueeze", dy, tape.ints(-1))
    found: list[ir.Value | None] = [None, None]
    if tape.wants(node, 0):
        product = tape.op("MatMul", dy, _swap(tape, right, max(ranks[1], 2)))
        found[0] = _to_operand(tape, product, node, 0)
    if tape.wants(node, 1):
        found[1] = _right_gradient(tape, node, left, dy)
    return found


def _right_gradient(tape: GradientTape, node: ir.Node, left: ir.Value, dy: ir.Value) -> ir.Value:
    a, b = node.inputs
    assert a is not None
    assert b is not None
    if tape.rank(b) <= 2:
        size = tape.op("Shape", b, start=0, end=1)
        columns = tape.op("Shape", b, start=1) if tape.rank(b) == 2 else tape.ints(1)
        rows = tape.op("Reshape", left, tape.op("Concat", tape.ints(-1), size, axis=0))
        flat = tape.op("Reshape", dy, tape.op("Concat", tape.ints(-1), columns, axis=0))
        product = tape.op("Gemm", rows, flat, transA=1)
        return product if tape.rank(b) == 2 else tape.op("Squeeze", product, tape.ints(1))
    product = tape.op("MatMul", _swap(tape, left, max(tape.rank(a), 2)), dy)
    return _to_operand(tape, product, node, 1)


def _as_matrix(tape: GradientTape, operand: ir.Value, axis: int) -> ir.Value:
    if tape.rank(operand) > 1:
        return operand
    return tape.op("Unsqueeze", operand, tape.ints(axis))


def _swap(tape: GradientTape, matrix: ir.Value, rank: int) -> ir.Value:
    return tape.op("Transpose", matrix, perm=[*range(rank - 2), rank - 1, rank - 2])


def _to_operand(tape: GradientTape, product: ir.Value, node: ir.Node, index: int) -> ir.Value:
    """Sum a gradient over the axes that an operand was broadcast along."""
    operand, other = node.inputs[index], node.inputs[1 - index]
    assert operand is not None
    assert other is not None
    shape, others = operand.shape, other.shape
    assert shape is not None
    assert others is not None
    if len(shape) == 1:
        wide = ir.Value(shape=ir.Shape([*_batch(node, len(others)), *shape]))
        product = tape.op("Squeeze", product, tape.ints(-2 if index == 0 else -1))
    else:
        count = max(len(shape), len(others)) - 2
        wide = ir.Value(shape=ir.Shape([*_batch(node, count + 2), *shape[-2:]]))
    return tape.sum_to(product, wide, operand)


def _batch(node: ir.Node, rank: int) -> list[int | ir.SymbolicDim]:
    """Return the batch axes that the output has, `rank` being the larger one of the operands."""
    shape = node.outputs[0].shape
    assert shape is not None
    return list(shape[: rank - 2])
