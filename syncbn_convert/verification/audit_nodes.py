"""Operators that the audits add to a graph."""

from __future__ import annotations

import onnx_ir as ir

DOUBLE = int(ir.DataType.DOUBLE)


def ints(tape: ir.tape.Tape, *values: int) -> ir.Value:
    """Return an int64 vector."""
    return tape.op("Constant", [], {"value": ir.tensor(list(values), dtype=ir.DataType.INT64)})


def constant(tape: ir.tape.Tape, value: float) -> ir.Value:
    """Return a float64 vector of one value."""
    return tape.op("Constant", [], {"value": ir.tensor([value], dtype=ir.DataType.DOUBLE)})


def largest(tape: ir.tape.Tape, value: ir.Value) -> ir.Value:
    """Return the largest magnitude of `value`, shape [1]."""
    found = tape.op("ReduceMax", [tape.op("Abs", [value])], {"keepdims": 0})
    return tape.op("Reshape", [found, ints(tape, 1)])


def channels_in_the_middle(
    tape: ir.tape.Tape, node: ir.Node, value: ir.Value | None, dtype: int = DOUBLE
) -> ir.Value:
    """Return a value of the shape of a node's X as [rows, C, columns] of `dtype`.

    It goes through the type that the node computes in, as it does in the node: ONNX Runtime drops
    the pair of casts to float16 and back before it, and the Reshape keeps the next cast apart.
    """
    assert value is not None
    axis = node.attributes["axis"].as_int()
    stash = node.attributes.get_int("stash_type", int(ir.DataType.FLOAT))
    cast = tape.op("Cast", [value], {"to": stash})
    before = tape.op("Shape", [value], {"start": 0, "end": axis})
    rows = tape.op("ReduceProd", [before], {"keepdims": 1})
    channels = tape.op("Shape", [node.inputs[1]])
    shape = tape.op("Concat", [rows, channels, ints(tape, -1)], {"axis": 0})
    folded = tape.op("Reshape", [cast, shape])
    return folded if dtype == stash else tape.op("Cast", [folded], {"to": dtype})
