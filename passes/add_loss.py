"""A loss over the global batch, as one scalar output."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, training_form
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.graph.value_types import infer_shapes_of, inferred_types
from syncbn_convert.options.training import BINARY_CROSS_ENTROPY, LOSSES, MSE, SOFTMAX_CROSS_ENTROPY
from syncbn_convert.passes.losses import compared, own
from syncbn_convert.passes.losses.compared import Labelling
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

OUTPUT = "loss"
_DOUBLE, _FLOAT = ir.DataType.DOUBLE, ir.DataType.FLOAT
_ALL_REPLICAS = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddLoss(RewritePass):
    """Add a graph input for labels and the output `loss`, the mean over the global batch.

    1. `softmax-cross-entropy` takes int64 class indices of the output's shape without its class
       axis. A final Softmax is looked through, behind a Transpose too: the loss is computed from
       what goes into it. An output without one is taken as logits, with the classes on its last
       axis if it has two, else on the one that `class_axis` or the shape of the labels tells.
    2. `binary-cross-entropy` takes numbers from 0 to 1 of the output's shape; a final Sigmoid is
       looked through, an output without one is taken as logits. `mse` takes numbers of the output's
       shape. Both are the mean over all elements.
    3. Any other loss is the name of a scalar output. What it takes of the samples by sums and means
       over all of them is taken over all replicas, and the rest computed from that.
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
        weights: Name of the graph input of sample weights to add; None adds none.
        one_hot: Whether labels of softmax-cross-entropy are shares of the classes.
        ignore_index: Class index of labels that do not count.
        class_weights: What the labels of each class count.
        label_smoothing: Share of each label that is spread over all classes.
        class_axis: Axis of the output that holds the classes, where it does not tell.
        label_shape: Shape of the labels in the data, which may tell that axis.
    """

    loss: str
    labels: str | None = None
    output: str | None = None
    weights: str | None = None
    one_hot: bool = False
    ignore_index: int | None = None
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    class_axis: int | None = None
    label_shape: tuple[int | None, ...] | None = None

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
            total, inputs = self._compare(model, tape, names, journal, penalty)
        else:
            total, inputs = self._own_loss(model, tape, journal, penalty), []
        loss = _published(tape, total, names.value(OUTPUT), self._description)
        model.graph.extend(tape.nodes)
        model.graph.inputs.extend(inputs)
        model.graph.outputs.append(loss)
        training_form.add_to(model, graphs.opset_version(model))
        return journal.result(model, modified=True)

    @property
    def labelling(self) -> Labelling:
        """How the labels count."""
        return Labelling(
            labels=self.labels or "",
            one_hot=self.one_hot,
            ignored=self.ignore_index,
            class_weights=self.class_weights,
            smoothing=self.label_smoothing,
            class_axis=self.class_axis,
            label_shape=self.label_shape,
        )

    @property
    def _description(self) -> str:
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("loss", "labels", "output", "label_shape")
            and getattr(self, field.name) != field.default
        }
        options = [f"{name}={value}" for name, value in given.items()]
        return " ".join(filter(None, (self.loss, self.labels, self.output, *options)))

    def _check_same(self, there: ir.Value) -> None:
        node = there.producer()
        assert node is not None
        other = provenance.loss_of(node)
        if other != self._description:
            raise ConversionError(
                f"the model has the loss '{other}' already; take the model without a loss"
            )

    def _compare(
        self,
        model: ir.Model,
        tape: Tape,
        names: graphs.Names,
        journal: Journal,
        penalty: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """Return the loss over all replicas, float64 [1], and new graph inputs."""
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
            SOFTMAX_CROSS_ENTROPY: compared.softmax_cross_entropy,
            BINARY_CROSS_ENTROPY: compared.binary_cross_entropy,
            MSE: compared.mean_squared_error,
        }[self.loss]
        found = add(tape, names, output, self.labelling)
        journal.add(str(output.name), "loss added", f"{self.loss}, {found.reason}")
        values, inputs = found.values, [found.label]
        if self.weights is not None:
            values, weight = compared.weighted_by_sample(tape, names, values, self.weights)
            inputs.append(weight)
        parts = [compared.sum_of(tape, values), found.divisor]
        (total, divisor), extra = _over_all_replicas(tape, parts, penalty)
        return _with(tape, tape.op("Div", total, own.at_least(tape, divisor)), extra), inputs

    def _own_loss(
        self, model: ir.Model, tape: Tape, journal: Journal, penalty: ir.Value | None
    ) -> ir.Value:
        """Return the model's own loss over all replicas, float64 [1]."""
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
        try:
            apart = own.take_apart(model, output, tape)
        except own.NotOverReplicasError as error:
            journal.add(str(output.name), "loss added", f"the model's own, alone: {error}")
            alone = compared.as_number(tape, output)
            (total,), extra = _over_all_replicas(tape, [alone], penalty)
            provenance.mark_alone(model, str(error))
            return _with(tape, total, extra)
        sums, extra = _over_all_replicas(tape, apart.parts, penalty)
        journal.add(str(output.name), "loss added", "the model's own, of sums over all replicas")
        loss = compared.as_number(tape, apart.follow.write_loss(sums))
        return _with(tape, loss, extra)


def output_of(model: ir.Model) -> ir.Value | None:
    """Return the output that the pass added, or None."""
    return next((value for value in model.graph.outputs if _is_own(value)), None)


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
        raise ConversionError(
            f"the model has the outputs {names}; say with --loss-output which the loss is of"
        )
    found = next((value for value in candidates if value.name == name), None)
    if found is None:
        raise ConversionError(f"the model has no output '{name}' to compare; it has {names}")
    return found


def _over_all_replicas(
    tape: Tape, parts: Sequence[ir.Value], penalty: ir.Value | None
) -> tuple[Sequence[ir.Value], ir.Value | None]:
    """Return the sums of parts over all replicas, and the penalty once; each float64 [1]."""
    given = list(parts)
    if penalty is not None:
        given += [compared.as_number(tape, penalty), tape.constant(np.ones(1), _DOUBLE)]
    payload = tape.op("Concat", *given, axis=0)
    total = tape.op(
        training_form.ALL_REDUCE, payload, domain=training_form.DOMAIN, group_size=_ALL_REPLICAS
    )
    if len(given) == 1:
        return [total], None
    sizes = tape.ints(*[1] * len(given))
    sums = tape.ops("Split", [total, sizes], len(given), axis=0)
    if penalty is None:
        return sums, None
    return sums[:-2], tape.op("Div", sums[-2], sums[-1])


def _with(tape: Tape, loss: ir.Value, penalty: ir.Value | None) -> ir.Value:
    return loss if penalty is None else tape.op("Add", loss, penalty)


def _published(tape: Tape, total: ir.Value, name: str, description: str) -> ir.Value:
    """Return the total as a float32 scalar, the loss of the model."""
    loss = tape.op("Cast", tape.op("Reshape", total, tape.ints()), to=int(_FLOAT))
    loss.name, loss.type, loss.shape = name, ir.TensorType(_FLOAT), ir.Shape([])
    provenance.mark_loss(tape.nodes[-1], description)
    return loss
