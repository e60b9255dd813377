"""A loss over the global batch, as one scalar output."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, training_form
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.graph.value_types import infer_shapes_of, inferred_types
from syncbn_convert.options.training import BINARY_CROSS_ENTROPY, LOSSES, MSE, SOFTMAX_CROSS_ENTROPY
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

OUTPUT = "loss"
_DOUBLE, _FLOAT, _INT64 = ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.INT64
_SAMPLES_AND_CLASSES = 2
_ALL_REPLICAS = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddLoss(RewritePass):
    """Add a graph input for labels and the output `loss`, the mean over the global batch.

    1. `softmax-cross-entropy` takes int64 class indices of the output's shape without its class
       axis. A final Softmax is looked through: the loss is computed from what goes into it. An
       output without one is taken as logits, with the classes on its last axis, and has rank 2.
    2. `binary-cross-entropy` takes numbers from 0 to 1 of the output's shape; a final Sigmoid is
       looked through, an output without one is taken as logits. `mse` takes numbers of the output's
       shape. Both are the mean over all elements.
    3. Any other loss is the name of a scalar output, the mean over the samples of a piece.
    4. The local sum and the number of terms go through one AllReduce of float64, so that pieces of
       the global batch may be uneven, or empty. The loss is the same number on every replica.
    5. `regularization_loss` is added once: it passes through the same AllReduce and is divided by
       the number of replicas, and its gradient with it.

    ```
    before   p = Softmax(z)
    after    p = Softmax(z)
             loss = Div(Split(AllReduce([-sum(LogSoftmax(z) * OneHot(label)), count])))
    ```

    Attributes:
        loss: One of the three, or the name of a scalar output.
        labels: Name of the graph input to add; a scalar output of the model needs none.
        output: Name of the graph output that is compared; None if there is only one.
    """

    loss: str
    labels: str | None = None
    output: str | None = None

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; the output that the loss is of gets a record."""
        journal = Journal(logger)
        there = output_of(model)
        if there is not None:
            self._check_same(there)
            return journal.result(model, modified=False)
        names = graphs.Names(model)
        tape = Tape(lambda node: names.after_operator(node, OUTPUT))
        penalty = next((value for value in model.graph.outputs if _is_penalty(value)), None)
        if self.loss in LOSSES:
            terms, count, inputs = self._compare(model, tape, names, journal)
        else:
            terms, count, inputs = self._own_loss(model, tape, journal)
        total = _over_all_replicas(tape, terms, count, penalty)
        loss = _published(tape, total, names.value(OUTPUT), self._description)
        model.graph.extend(tape.nodes)
        model.graph.inputs.extend(inputs)
        model.graph.outputs.append(loss)
        training_form.add_to(model, graphs.opset_version(model))
        return journal.result(model, modified=True)

    @property
    def _description(self) -> str:
        return " ".join(filter(None, (self.loss, self.labels, self.output)))

    def _check_same(self, there: ir.Value) -> None:
        node = there.producer()
        assert node is not None
        other = provenance.loss_of(node)
        if other != self._description:
            raise ConversionError(
                f"the model has the loss '{other}' already; take the model without a loss"
            )

    def _compare(
        self, model: ir.Model, tape: Tape, names: graphs.Names, journal: Journal
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """Return sum and number of this replica's terms, each float64 [1], and new graph inputs."""
        if not self.labels:
            raise ConversionError(f"the loss {self.loss} compares with labels; name them")
        output = _compared_output(model, self.output)
        infer_shapes_of(model, [output])
        dtype = output.dtype or inferred_types(model, [output]).get(output)
        if dtype is None or not dtype.is_floating_point():
            raise ConversionError(
                f"output '{output.name}' has element type {dtype}, but a loss is of "
                "floating-point numbers; name another output"
            )
        output.dtype = dtype
        add = {
            SOFTMAX_CROSS_ENTROPY: _softmax_cross_entropy,
            BINARY_CROSS_ENTROPY: _binary_cross_entropy,
            MSE: _mean_squared_error,
        }[self.loss]
        terms, label, reason = add(tape, names, output, self.labels)
        journal.add(str(output.name), "loss added", f"{self.loss}, {reason}")
        count = _count(tape, label)
        return _sum(tape, terms), tape.op("Cast", count, to=int(_DOUBLE)), [label]

    def _own_loss(
        self, model: ir.Model, tape: Tape, journal: Journal
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """Return the model's own loss times the number of samples, that number, and no inputs."""
        output = next((value for value in model.graph.outputs if value.name == self.loss), None)
        if output is None:
            raise ConversionError(
                f"loss '{self.loss}' is neither {', '.join(LOSSES)} nor an output of the model"
            )
        infer_shapes_of(model, [output])
        if output.shape is None or any(size != 1 for size in output.shape):
            raise ConversionError(
                f"output '{self.loss}' has shape {output.shape}, but a loss is a scalar"
            )
        data = next(value for value in model.graph.inputs if not value.is_initializer())
        sizes = tape.op("Cast", tape.op("Shape", data, start=0, end=1), to=int(_DOUBLE))
        value = tape.op("Reshape", tape.op("Cast", output, to=int(_DOUBLE)), tape.ints(1))
        zero = tape.constant(np.zeros(1), _DOUBLE)
        term = tape.op("Where", tape.op("Greater", sizes, zero), tape.op("Mul", value, sizes), zero)
        journal.add(str(output.name), "loss added", "the model's own, weighted by samples")
        return term, sizes, []


def output_of(model: ir.Model) -> ir.Value | None:
    """Return the output that the pass added, or None."""
    return next((value for value in model.graph.outputs if _is_own(value)), None)


def logits_of(output: ir.Value, activation: str) -> tuple[ir.Value, ir.Node | None]:
    """Look through a final activation: return what goes into it, and its node if there is one."""
    value = _behind_identities(output)
    node = value.producer()
    if node is not None and node.domain in graphs.STANDARD_DOMAINS and node.op_type == activation:
        assert node.inputs[0] is not None
        return node.inputs[0], node
    return value, None


def _behind_identities(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _is_own(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and provenance.loss_of(node) is not None


def _is_penalty(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and provenance.is_penalty(node)


def comparable_outputs(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the graph outputs that are neither state, loss nor regularization loss."""
    for value in model.graph.outputs:
        node = value.producer()
        state = node is not None and training_form.is_sync_batchnorm(node) and value.index()
        if not (state or _is_penalty(value) or _is_own(value)):
            yield value


def _compared_output(model: ir.Model, name: str | None) -> ir.Value:
    candidates = list(comparable_outputs(model))
    if name is None and len(candidates) == 1:
        return candidates[0]
    names = ", ".join(f"'{value.name}'" for value in candidates)
    if name is None:
        raise ConversionError(f"the model has the outputs {names}; say which the loss is of")
    found = next((value for value in candidates if value.name == name), None)
    if found is None:
        raise ConversionError(f"the model has no output '{name}' to compare; it has {names}")
    return found


_Terms = tuple[ir.Value, ir.Value, str]
"""Terms of a loss, the labels that they compare with, and what to tell the user."""


def _softmax_cross_entropy(
    tape: Tape, names: graphs.Names, output: ir.Value, labels: str
) -> _Terms:
    logits, softmax = logits_of(output, "Softmax")
    if softmax is None:
        logits, softmax = logits_of(output, "LogSoftmax")
    rank = len(output.shape) if output.shape is not None else None
    if softmax is None and rank != _SAMPLES_AND_CLASSES:
        raise ConversionError(
            f"output '{output.name}' has rank {rank} and no Softmax says which of its axes holds "
            "the classes; end the model with a Softmax, which is looked through"
        )
    axis = softmax.attributes.get_int("axis", -1) if softmax is not None else -1
    sizes = None
    if output.shape is not None:
        sizes = list(output.shape)
        del sizes[axis]
    label = _input(names, labels, _INT64, sizes)
    logits, dtype = _at_least_float32(tape, logits, output)
    log_p = tape.op("LogSoftmax", logits, axis=axis)
    depth = tape.op("Gather", tape.op("Shape", logits), tape.ints(axis))
    chosen = tape.op("OneHot", label, depth, tape.constant(np.array([0, 1]), _FLOAT), axis=axis)
    if dtype != _FLOAT:
        chosen = tape.op("Cast", chosen, to=int(dtype))
    picked = tape.op("ReduceSum", tape.op("Mul", log_p, chosen), tape.ints(axis), keepdims=0)
    return tape.op("Neg", picked), label, _looked_through(softmax)


def _binary_cross_entropy(tape: Tape, names: graphs.Names, output: ir.Value, labels: str) -> _Terms:
    logits, sigmoid = logits_of(output, "Sigmoid")
    logits, dtype = _at_least_float32(tape, logits, output)
    label = _input(names, labels, dtype, None if output.shape is None else list(output.shape))
    terms = tape.op("Sub", tape.op("Softplus", logits), tape.op("Mul", logits, label))
    return terms, label, _looked_through(sigmoid)


def _mean_squared_error(tape: Tape, names: graphs.Names, output: ir.Value, labels: str) -> _Terms:
    value, dtype = _at_least_float32(tape, output, output)
    label = _input(names, labels, dtype, None if output.shape is None else list(output.shape))
    difference = tape.op("Sub", value, label)
    return tape.op("Mul", difference, difference), label, "of all elements"


def _looked_through(activation: ir.Node | None) -> str:
    if activation is None:
        return "the output taken as logits"
    return f"{activation.op_type} '{graphs.label(activation)}' looked through"


def _over_all_replicas(
    tape: Tape, terms: ir.Value, count: ir.Value, penalty: ir.Value | None
) -> ir.Value:
    """Return the mean over all replicas, and the penalty once; float64 [1]."""
    one = tape.constant(np.ones(1), _DOUBLE)
    parts = [terms, count]
    if penalty is not None:
        wide = tape.op("Cast", penalty, to=int(_DOUBLE))
        parts += [tape.op("Reshape", wide, tape.ints(1)), one]
    payload = tape.op("Concat", *parts, axis=0)
    total = tape.op(
        training_form.ALL_REDUCE, payload, domain=training_form.DOMAIN, group_size=_ALL_REPLICAS
    )
    sizes = tape.ints(*[1] * len(parts))
    sums = tape.ops("Split", [total, sizes], len(parts), axis=0)
    mean = tape.op("Div", sums[0], tape.op("Max", sums[1], one))
    if penalty is None:
        return mean
    return tape.op("Add", mean, tape.op("Div", sums[2], sums[3]))


def _published(tape: Tape, total: ir.Value, name: str, description: str) -> ir.Value:
    """Return the total as a float32 scalar, the loss of the model."""
    loss = tape.op("Cast", tape.op("Reshape", total, tape.ints()), to=int(_FLOAT))
    loss.name, loss.type, loss.shape = name, ir.TensorType(_FLOAT), ir.Shape([])
    provenance.mark_loss(tape.nodes[-1], description)
    return loss


def _input(names: graphs.Names, name: str, dtype: ir.DataType, sizes: list[Any] | None) -> ir.Value:
    if names.value(name) != name:
        raise ConversionError(
            f"the model has a value named '{name}' of its own; name the labels otherwise"
        )
    shape = None
    if sizes is not None:  # some exporters write -1 for any size
        shape = ir.Shape([None if isinstance(n, int) and n < 0 else n for n in sizes])
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


def _at_least_float32(
    tape: Tape, value: ir.Value, output: ir.Value
) -> tuple[ir.Value, ir.DataType]:
    """Return `value`, which has the element type of `output`, in float32 or float64."""
    if output.dtype in (_FLOAT, _DOUBLE):
        return value, output.dtype
    return tape.op("Cast", value, to=int(_FLOAT)), _FLOAT


def _sum(tape: Tape, terms: ir.Value) -> ir.Value:
    """Return the sum of all elements, float64 [1]."""
    wide = tape.op("Cast", terms, to=int(_DOUBLE))
    return tape.op("ReduceSum", tape.op("Reshape", wide, tape.ints(-1)), tape.ints(0))


def _count(tape: Tape, value: ir.Value) -> ir.Value:
    """Return the number of elements, int64 [1]."""
    return tape.op("Reshape", tape.op("Size", value), tape.ints(1))
