"""Regularizers of gamma and beta to one scalar output, `regularization_loss`."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, weight_facts
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.options.keras_objects import Regularizer
from syncbn_convert.options.keras_objects.configs import describe
from syncbn_convert.options.keras_objects.regularizers import regularizer_of
from syncbn_convert.rewriting import Journal, RewriteResult
from syncbn_convert.rewriting.selection import SelectingPass, layers_with_options

logger = logging.getLogger(__name__)

OUTPUT = "regularization_loss"
_REGULARIZED = {"scale": "gamma", "B": "beta"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizeParameters(SelectingPass):
    """Add the penalties of parameters as one scalar graph output.

    They are those of gamma and beta that options give, and those that Keras' layers have for their
    weights.

    It is `l1 * sum(|w|) + l2 * sum(w^2)` over the layers' trainable parameters, each layer counted
    once however often it is called. It depends on parameters alone, so every replica returns the
    whole of it: it is added to the loss once, not once per replica. Frozen layers and parameters
    that `center=False` or `scale=False` dropped have no penalty, as in Keras.

    ```
    before   y = BatchNormalization(x, s, b, m, v)
    after    ..., regularization_loss = Mul(ReduceSumSquare(s), l2)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node whose parameters are penalized gets a record."""
        journal = Journal(logger)
        loss = next((value for value in model.graph.outputs if _is_own(value)), None)
        known = _known(loss)
        penalized: dict[str, tuple[ir.Value, Regularizer]] = {}
        chosen = [choice for choice in self.choose(model) if not choice.reason]
        for calls, options in layers_with_options(chosen):
            for role, name in _REGULARIZED.items():
                penalty, value = getattr(options, f"{name}_regularizer"), calls[0].parameters[role]
                key = f"{calls[0].node.outputs[0].name} {name}"
                if penalty is None or not value.is_initializer() or key in known:
                    continue
                text = f"{name} penalty l1={penalty.l1:g} l2={penalty.l2:g}"
                journal.add(calls[0].node, "regularized", text)
                penalized[key] = value, penalty
        for name, facts in weight_facts.get(model).items():
            weight = model.graph.initializers.get(name)
            if facts.regularizer is None or facts.untrained or weight is None or name in known:
                continue
            penalty = regularizer_of(facts.regularizer)
            penalized[name] = weight, penalty
            journal.add(name, "penalized", describe(penalty))
        if penalized:
            _add(model, loss, penalized)
        return journal.result(model, modified=bool(penalized))


def remove_from(model: ir.Model) -> str | None:
    """Remove the output that the pass added; return its name, or None where there is none."""
    outputs = [value for value in model.graph.outputs if _is_own(value)]
    graphs.remove_from(model.graph.outputs, outputs)
    graphs.remove_dead_producers(outputs)
    return str(outputs[0].name) if outputs else None


def _is_own(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and provenance.is_penalty(node)


def _known(loss: ir.Value | None) -> set[str]:
    node = loss.producer() if loss is not None else None
    return provenance.penalized_by(node) if node is not None else set()


def _add(
    model: ir.Model, loss: ir.Value | None, penalized: dict[str, tuple[ir.Value, Regularizer]]
) -> None:
    """Add penalties to the loss that is there, or make one."""
    names = graphs.Names(model)
    if loss is None:
        if OUTPUT in names.values:
            raise ConversionError(
                f"the model has a value named '{OUTPUT}' of its own, and that is the output of the "
                "regularizers; rename it"
            )
        wide = any(value.dtype == ir.DataType.DOUBLE for value, _ in penalized.values())
        dtype = ir.DataType.DOUBLE if wide else ir.DataType.FLOAT
    else:
        dtype = loss.dtype or ir.DataType.FLOAT

    def name(node: ir.Node) -> None:
        node.name = names.node(f"{OUTPUT}/{node.op_type}")
        node.outputs[0].name = names.value(f"{OUTPUT}/{len(tape.nodes)}")

    tape = Tape(name)
    terms = [
        term
        for value, penalty in penalized.values()
        for term in _terms(tape, value, penalty, dtype)
    ]
    if loss is None:
        total = ir.node("Sum", terms)
        loss = total.outputs[0]
        loss.name, loss.type, loss.shape = OUTPUT, ir.TensorType(dtype), ir.Shape([])
        total.name = names.node(f"{OUTPUT}/Sum")
        model.graph.extend([*tape.nodes, total])
        model.graph.outputs.append(loss)
    else:
        old = loss.producer()
        assert old is not None
        count = len(old.inputs)
        old.resize_inputs(count + len(terms))
        for number, term in enumerate(terms, start=count):
            old.replace_input_with(number, term)
        model.graph.insert_before(old, tape.nodes)
    producer = loss.producer()
    assert producer is not None
    known = provenance.penalized_by(producer) if provenance.is_penalty(producer) else set()
    provenance.mark_penalty(producer, known | set(penalized))


def _terms(tape: Tape, value: ir.Value, penalty: Regularizer, dtype: ir.DataType) -> list[ir.Value]:
    if value.dtype != dtype:
        value = tape.op("Cast", value, to=int(dtype))
    return [
        tape.op("Mul", tape.op(operator, value, keepdims=0), tape.constant(factor, dtype))
        for operator, factor in (("ReduceL1", penalty.l1), ("ReduceSumSquare", penalty.l2))
        if factor or not (penalty.l1 or penalty.l2)
    ]
