"""Constraints of gamma and beta to projections in the training algorithm."""

from __future__ import annotations

import dataclasses
import logging

import onnx
import onnx_ir as ir
from onnx import helper

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, training_info, weight_facts
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.options.keras_objects import Constraint
from syncbn_convert.options.keras_objects.configs import describe
from syncbn_convert.options.keras_objects.constraints import (
    NORM_EPSILON,
    MaxNorm,
    MinMaxNorm,
    NonNeg,
    UnitNorm,
    constraint_of,
)
from syncbn_convert.rewriting import Journal, RewriteResult
from syncbn_convert.rewriting.selection import SelectingPass, layers_with_options

logger = logging.getLogger(__name__)

_CONSTRAINED = {"scale": "gamma", "B": "beta"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstrainParameters(SelectingPass):
    """Bind the projections of parameters in `training_info`.

    They are those of gamma and beta that options give, and those that Keras' layers have for their
    weights.

    The projection is a subgraph of the first entry's `algorithm`; its output `<name>.projected` is
    bound to the parameter, so that whoever executes the algorithm after an update assigns it, as
    Keras does. Frozen layers and dropped parameters have none.

    ```
    before   update_binding {}
    after    algorithm { s.projected = Max(s, 0) }  update_binding { s <- s.projected }
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node whose parameters are constrained gets a record."""
        journal = Journal(logger)
        found: dict[str, tuple[ir.Value, Constraint, tuple[int, ...]]] = {}
        chosen = [choice for choice in self.choose(model) if not choice.reason]
        for calls, options in layers_with_options(chosen):
            for role, keras_name in _CONSTRAINED.items():
                constraint = getattr(options, f"{keras_name}_constraint")
                value = calls[0].parameters[role]
                if constraint is None or not value.is_initializer():
                    continue
                name = str(value.name)
                if name in found and found[name][1] != constraint:
                    raise ConversionError(
                        f"node '{graphs.label(calls[0].node)}': '{name}' is shared with another "
                        "parameter, which has another constraint; give both the same"
                    )
                found[name] = value, constraint, ()
                text = f"{keras_name} constraint {describe(constraint)}"
                journal.add(calls[0].node, "constrained", text)
        for name, facts in weight_facts.get(model).items():
            weight = model.graph.initializers.get(name)
            if facts.constraint is None or facts.untrained or weight is None:
                continue
            constraint = constraint_of(facts.constraint)
            found[name] = weight, constraint, facts.axes
            journal.add(name, "constrained", describe(constraint))
        bindings = training_info.update_bindings(model)
        projections = training_info.outputs_of(model, provenance.projection_of)
        new = {
            name: pair
            for name, pair in found.items()
            if not _is_bound(name, pair[1], bindings, projections)
        }
        if not new:
            return journal.result(model, modified=False)
        taken = graphs.used_names(model) | training_info.algorithm_names(model)
        for name, (value, constraint, axes) in new.items():
            output = graphs.unique_name(f"{name}.projected", taken)
            nodes = _projection(value, constraint, axes, output, taken)
            training_info.add_to_algorithm(model, nodes, _info(value, output))
            bindings[name] = output
        training_info.set_update_bindings(model, bindings)
        return journal.result(model, modified=True)


def _is_bound(
    name: str, constraint: Constraint, bindings: dict[str, str], projections: dict[str, str]
) -> bool:
    """Whether the parameter is projected by this constraint already.

    Raises:
        ConversionError: if it is bound to something else.
    """
    if name not in bindings:
        return False
    there = projections.get(bindings[name])
    if there != describe(constraint):
        owner = f"the constraint {there}" if there else "the model's own training algorithm"
        raise ConversionError(
            f"parameter '{name}' is bound to '{bindings[name]}' in training_info by {owner} "
            f"already, and {describe(constraint)} would have to come after it; remove that binding"
        )
    return True


def remove_from(model: ir.Model) -> list[str]:
    """Remove the projections that the pass added; return the parameters they were bound to."""
    outputs = training_info.remove_from_algorithm(model, provenance.is_projection)
    bindings = training_info.update_bindings(model)
    kept = {name: output for name, output in bindings.items() if output not in outputs}
    if kept != bindings:
        training_info.set_update_bindings(model, kept)
    return [name for name in bindings if name not in kept]


def _info(value: ir.Value, output: str) -> onnx.ValueInfoProto:
    tensor = value.const_value
    assert tensor is not None
    return helper.make_tensor_value_info(output, int(tensor.dtype), tensor.shape.numpy())


def _projection(
    value: ir.Value, constraint: Constraint, axes: tuple[int, ...], output: str, taken: set[str]
) -> list[onnx.NodeProto]:
    """Return nodes that compute `output` from the parameter, in float32 or wider."""

    def name(node: ir.Node) -> None:
        (made,) = node.outputs
        made.name = made.name or graphs.unique_name(f"{output}/{len(tape.nodes)}", taken)
        node.name = made.name

    tape = Tape(name)
    parameter, tensor = ir.Value(name=value.name), value.const_value
    assert tensor is not None
    narrow = tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    dtype = ir.DataType.FLOAT if narrow else tensor.dtype
    w = tape.op("Cast", parameter, to=int(dtype)) if narrow else parameter
    if isinstance(constraint, NonNeg):
        projected = tape.op("Max", w, tape.constant([0.0], dtype))
    else:
        projected = _scaled(tape, w, constraint, axes, dtype)
    operands = [projected, parameter] if narrow else [projected]
    tape.op("CastLike" if narrow else "Identity", *operands, output=ir.Value(name=output))
    nodes = [ir.to_proto(node) for node in tape.nodes]
    for node in nodes:
        provenance.mark_projection(node, describe(constraint))
    return nodes


def _scaled(
    tape: Tape, w: ir.Value, constraint: Constraint, axes: tuple[int, ...], dtype: ir.DataType
) -> ir.Value:
    over = tape.ints(*axes) if axes else None
    norm = tape.op("Sqrt", tape.op("ReduceSum", tape.op("Mul", w, w), over, keepdims=1))
    divisor = tape.op("Add", norm, tape.constant([NORM_EPSILON], dtype))
    if isinstance(constraint, UnitNorm):
        return tape.op("Div", w, divisor)
    if isinstance(constraint, MaxNorm):
        constraint = MinMaxNorm(max_value=constraint.max_value)
    assert isinstance(constraint, MinMaxNorm)
    low, high, rate, rest = (
        tape.constant([number], dtype)
        for number in (
            constraint.min_value,
            constraint.max_value,
            constraint.rate,
            1.0 - constraint.rate,
        )
    )
    clipped = tape.op("Min", tape.op("Max", norm, low), high)
    desired = tape.op("Add", tape.op("Mul", clipped, rate), tape.op("Mul", norm, rest))
    return tape.op("Mul", w, tape.op("Div", desired, divisor))
