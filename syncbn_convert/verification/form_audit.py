"""Is each SyncBatchNormalization, on one replica, ONNX's training-mode BatchNormalization?

Run whole, a deep network in training mode says little: rounding grows with every normalization of a
small variance. So each node is held against its own oracle on the input that it really gets: the
training-mode kernel of the runtime, once in float64 (the oracle) and once in the precision that the
node computes in (which shows what that precision is worth on this input). The comparisons are part
of the graph, which then returns nothing but a few numbers per node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs
from syncbn_convert.graph.dtypes import epsilon, smallest_normal
from syncbn_convert.verification.audit_nodes import (
    DOUBLE,
    channels_in_the_middle,
    constant,
    ints,
    largest,
)

_SIZE = 3
_AUDITED = ("Y", "running_mean", "running_var")
_KERNEL_FACTOR = 8.0
_EPSILON_FACTOR = 32.0
_SMALLEST_NORMAL = smallest_normal(np.dtype(np.float32))
"""Below it float32, the narrowest type that statistics are computed in, loses its precision."""


@dataclasses.dataclass(frozen=True)
class NodeError:
    """How far one output of one node is from the oracle, relative to its largest magnitude.

    Attributes:
        node: Name of the SyncBatchNormalization node.
        output: `Y`, `running_mean` or `running_var`.
        relative_error: Largest |output - oracle| over largest |oracle|.
        tolerance: 8 times the relative error of the runtime's own kernel in the same precision,
            plus 32 units of that precision and one of the output's dtype.
    """

    node: str
    output: str
    relative_error: float
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether the error is within the tolerance; not a number is not."""
        return self.relative_error <= self.tolerance


def audit_model(form: ir.Model) -> ir.Model:
    """Return a model that runs `form` and returns figures, per node and output.

    They are [error, kernel, scale, size]. `size` is the number of elements that are normalized,
    `error` is the largest |output - oracle|, `kernel` that of the kernel in the node's precision,
    `scale` the largest |oracle|, for a mean also the largest standard deviation; float64.
    """
    model = graphs.clone(form)
    names = graphs.used_names(model)
    outputs: list[ir.Value] = []
    for number, node in enumerate(training_form.nodes(model)):
        for output, figures in zip(_AUDITED, _audit_node(node), strict=True):
            figures.name = graphs.unique_name(f"audit/{number}/{output}", names)
            figures.type, figures.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape([4])
            outputs.append(figures)
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    return model


def read_figures(
    form: ir.Model, runs: Sequence[Mapping[str, np.ndarray[Any, Any]]]
) -> list[NodeError]:
    """Turn what `audit_model` returned on several feeds into errors, the worst run of each.

    Runs in which a node gets nothing to normalize say nothing about it.
    """
    errors: list[NodeError] = []
    for number, node in enumerate(training_form.nodes(form)):
        for index, output in enumerate(_AUDITED):
            rounding = _EPSILON_FACTOR * _unit(_stash(node))
            stored = node.outputs[index] if index else node.inputs[0]
            rounding += _unit(stored.dtype if stored is not None else None)
            candidates = [
                _node_error(graphs.label(node), output, run[f"audit/{number}/{output}"], rounding)
                for run in runs
                if run[f"audit/{number}/{output}"][_SIZE]
            ]
            errors += [max(candidates, key=_severity)] if candidates else []
    return errors


def empty_nodes(form: ir.Model, runs: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> list[str]:
    """Return the nodes that got nothing to normalize in any run."""
    return [
        graphs.label(node)
        for number, node in enumerate(training_form.nodes(form))
        if not any(run[f"audit/{number}/{_AUDITED[0]}"][_SIZE] for run in runs)
    ]


def _severity(error: NodeError) -> float:
    return (
        float("inf") if np.isnan(error.relative_error) else error.relative_error / error.tolerance
    )


def _node_error(
    node: str, output: str, figures: np.ndarray[Any, Any], rounding: float
) -> NodeError:
    error, kernel, scale = (float(figure) for figure in figures[:_SIZE])
    divisor = max(scale, _SMALLEST_NORMAL)
    return NodeError(node, output, error / divisor, _KERNEL_FACTOR * kernel / divisor + rounding)


def _unit(dtype: ir.DataType | None) -> float:
    return epsilon((dtype or ir.DataType.FLOAT).numpy())


def _stash(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes.get_int("stash_type", int(ir.DataType.FLOAT)))


def _audit_node(node: ir.Node) -> list[ir.Value]:
    """Insert the two kernels after `node` and return the figures of its three outputs."""
    assert node.graph is not None
    tape = ir.tape.Tape()
    oracle = _kernel(tape, node, DOUBLE)
    kernel = _kernel(tape, node, int(_stash(node)))
    magnitudes = [largest(tape, value) for value in oracle]
    deviation = tape.op("Sqrt", [magnitudes[2]])
    size = tape.op("Cast", [tape.op("Size", [node.inputs[0]])], {"to": DOUBLE})
    size = tape.op("Reshape", [size, ints(tape, 1)])
    scales = [magnitudes[0], tape.op("Max", [magnitudes[1], deviation]), magnitudes[2]]
    figures = [
        tape.op(
            "Concat",
            [
                _largest_difference(tape, own, exact),
                _largest_difference(tape, same_precision, exact),
                scale,
                size,
            ],
            {"axis": 0},
        )
        for own, exact, same_precision, scale in zip(
            _own_outputs(tape, node), oracle, kernel, scales, strict=True
        )
    ]
    node.graph.insert_after(node, list(tape.nodes))
    return figures


def _kernel(tape: ir.tape.Tape, node: ir.Node, dtype: int) -> Sequence[ir.Value]:
    """Call the training-mode kernel, which writes over its last two inputs, on copies of them."""
    operands = [tape.op("Cast", [value], {"to": dtype}) for value in node.inputs]
    if not _is_read_as_it_is(node):
        operands[0] = channels_in_the_middle(tape, node, node.inputs[0], dtype)
    operands[3:] = [tape.op("Max", [value, value]) for value in operands[3:]]
    epsilon_, momentum = (node.attributes[name].as_float() for name in ("epsilon", "momentum"))
    unbiased = node.attributes.get_int("unbiased", 0) != 0
    y, mean, var = tape.op_multi_out(
        "BatchNormalization",
        operands,
        {"epsilon": epsilon_, "momentum": 0.0 if unbiased else momentum, "training_mode": 1},
        num_outputs=3,
    )
    if unbiased:
        mean, var = _unbiased_update(tape, node, mean, var, momentum)
    return y, mean, var


def _own_outputs(tape: ir.tape.Tape, node: ir.Node) -> list[ir.Value]:
    y, *running = node.outputs[:3]
    return [y if _is_read_as_it_is(node) else channels_in_the_middle(tape, node, y), *running]


def _is_read_as_it_is(node: ir.Node) -> bool:
    """Whether the axis is the kernel's, and no cast before the node could be dropped with its."""
    x = node.inputs[0]
    narrow = x is None or x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return node.attributes.get_int("axis", 1) == 1 and not narrow


def _unbiased_update(
    tape: ir.tape.Tape, node: ir.Node, mean: ir.Value, var: ir.Value, momentum: float
) -> tuple[ir.Value, ir.Value]:
    """Move the statistics by those of the batch, in float64, the variance as that of N - 1.

    With N = 1 they stay as they are.
    """
    size = tape.op("Cast", [tape.op("Size", [node.inputs[0]])], {"to": DOUBLE})
    channels = tape.op("Cast", [tape.op("Shape", [node.inputs[1]])], {"to": DOUBLE})
    freedom = tape.op("Sub", [tape.op("Div", [size, channels]), constant(tape, 1.0)])
    has_freedom = tape.op("Greater", [freedom, constant(tape, 0.0)])
    divisor = tape.op("Max", [freedom, constant(tape, 1.0)])
    correction = tape.op("Div", [tape.op("Add", [freedom, constant(tape, 1.0)]), divisor])

    def moved(old: ir.Value | None, batch: ir.Value) -> ir.Value:
        before = tape.op("Cast", [old], {"to": DOUBLE})
        kept = tape.op("Mul", [before, constant(tape, momentum)])
        added = tape.op("Mul", [batch, constant(tape, 1.0 - momentum)])
        return tape.op("Where", [has_freedom, tape.op("Add", [kept, added]), before])

    batch_mean, batch_var = (tape.op("Cast", [value], {"to": DOUBLE}) for value in (mean, var))
    corrected = tape.op("Mul", [batch_var, correction])
    return moved(node.inputs[3], batch_mean), moved(node.inputs[4], corrected)


def _largest_difference(tape: ir.tape.Tape, value: ir.Value, exact: ir.Value) -> ir.Value:
    widened = tape.op("Cast", [value], {"to": DOUBLE})
    return largest(tape, tape.op("Sub", [widened, exact]))
