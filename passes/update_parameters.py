"""The step of an optimizer, as the training algorithm of the model."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import buckets, provenance, training_info
from syncbn_convert.form.buckets import Bucket, Entry
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import SharingTape
from syncbn_convert.options.optimizers import Adam, AdamW, Optimizer, RMSprop, Sgd, describe
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult, matches

logger = logging.getLogger(__name__)

LEARNING_RATE = "learning_rate"
STEP = "step"
_AXES_OF_KERNELS = 2
_DTYPES = {"float32": ir.DataType.FLOAT, "float64": ir.DataType.DOUBLE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateParameters(RewritePass):
    """Write the optimizer's step into `training_info`.

    1. The first entry's `algorithm` gets the buckets of gradients as inputs, and `learning_rate`
       (float32) and `step` (int64, the number of the update from 1). It reads the model's
       parameters, and the optimizer's slots, which are initializers of its own, zero at first.
    2. Each parameter is bound to `<name>.next`, each slot to its next value. The formulas, in the
       parameter's element type, are those of Keras.
    3. With `clip_norm`, all gradients are scaled by `clip_norm / max(norm, clip_norm)` first, with
       the norm of all of them together, summed in float64.
    4. A constraint that is there already (see `constrain_parameters`) projects what the update
       makes, and stays what the parameter is bound to.

    ```
    before   update_binding {}
    after    algorithm { w.momentum.next = w.momentum * 0.9 - g * learning_rate
                         w.next = w + w.momentum.next }
             update_binding { w <- w.next, w.momentum <- w.momentum.next }
    ```

    Attributes:
        optimizer: Whose step; see `syncbn_convert.options.optimizers`.
    """

    optimizer: Optimizer

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every parameter gets a record.

        Raises:
            ConversionError: if the model has no buckets, or is updated otherwise already.
        """
        journal = Journal(logger)
        description = json.dumps(describe(self.optimizer))
        there = set(training_info.outputs_of(model, provenance.update_of).values())
        if there:
            if there != {description}:
                raise ConversionError(
                    f"the training algorithm has the optimizer {there.pop()} already; take the "
                    "model without it"
                )
            return journal.result(model, modified=False)
        packed = buckets.get(model)
        if not packed:
            raise ConversionError(
                "the model returns no buckets of gradients; differentiate it and pack the "
                "gradients first"
            )
        bindings = training_info.update_bindings(model)
        projected = training_info.outputs_of(model, provenance.projection_of)
        taken = graphs.used_names(model) | training_info.algorithm_names(model)
        self._check_patterns(packed)
        update = _Update(taken, self.optimizer)
        update.clip(packed)
        for bucket in packed:
            for entry, gradient in zip(bucket.entries, update.split(bucket), strict=True):
                constrained = bindings.get(entry.name) in projected
                if entry.name in bindings and not constrained:
                    raise ConversionError(
                        f"parameter '{entry.name}' is bound to '{bindings[entry.name]}' in "
                        "training_info by the model's own training algorithm; remove that binding"
                    )
                update.write(entry, gradient, _DTYPES[bucket.dtype], constrained)
                journal.add(entry.name, "updated", self.optimizer.name)
        nodes = [ir.to_proto(node) for node in update.tape.nodes]
        for node in nodes:
            provenance.mark_update(node, description)
        _put(model, update, nodes, bindings)
        return journal.result(model, modified=True)

    def _check_patterns(self, packed: Sequence[Bucket]) -> None:
        names = [entry.name for bucket in packed for entry in bucket.entries]
        for pattern in self.optimizer.no_decay:
            if not any(matches((pattern,), name) for name in names):
                raise ConversionError(
                    f"--no-decay '{pattern}' matches no parameter; the first of {len(names)} is "
                    f"named '{names[0]}'"
                )


def _put(
    model: ir.Model, update: _Update, nodes: list[onnx.NodeProto], bindings: dict[str, str]
) -> None:
    entries = training_info.get(model) or [onnx.TrainingInfoProto()]
    algorithm = entries[0].algorithm
    algorithm.name = algorithm.name or "algorithm"
    projections = list(algorithm.node)
    for node in projections:
        node.input[:] = [update.unprojected.get(name, name) for name in node.input]
    del algorithm.node[:]
    algorithm.node.extend([*nodes, *projections])
    algorithm.input.extend(update.inputs)
    algorithm.output.extend(update.outputs)
    algorithm.sparse_initializer.extend(update.slots)
    training_info.put(model, entries)
    training_info.set_update_bindings(model, {**bindings, **update.bindings})


class _Update:
    """The algorithm as it is written: the nodes on its tape, and what goes in and comes out."""

    def __init__(self, taken: set[str], optimizer: Optimizer) -> None:
        self.tape = SharingTape(self._name_node)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.slots: list[onnx.SparseTensorProto] = []
        self.bindings: dict[str, str] = {}
        self.unprojected: dict[str, str] = {}
        self._taken = taken
        self._optimizer = optimizer
        self._known: dict[tuple[Any, ...], ir.Value] = {}
        self._clipped: dict[str, ir.Value] = {}
        self._learning_rate = self._input(LEARNING_RATE, ir.DataType.FLOAT)
        self._step = self._input(STEP, ir.DataType.INT64)

    def clip(self, packed: Sequence[Bucket]) -> None:
        """Scale all buckets so that their norm together is the optimizer's, if it is larger."""
        largest = self._optimizer.clip_norm
        if largest is None:
            return
        tape, wide = self.tape, ir.DataType.DOUBLE
        given = {bucket.name: ir.Value(name=bucket.name) for bucket in packed}
        squares = [
            tape.op("ReduceSumSquare", self._cast(value, wide), keepdims=0)
            for value in given.values()
        ]
        norm = tape.op("Sqrt", tape.op("Sum", *squares) if len(squares) > 1 else squares[0])
        clip = tape.constant(largest, wide)
        factor = tape.op("Div", clip, tape.op("Max", norm, clip))
        for bucket in packed:
            own = self._cast(factor, _DTYPES[bucket.dtype])
            self._clipped[bucket.name] = tape.op("Mul", given[bucket.name], own)

    def split(self, bucket: Bucket) -> list[ir.Value]:
        """Return the gradients of a bucket, each in its parameter's shape."""
        self.inputs.append(_info(bucket.name, _DTYPES[bucket.dtype], [bucket.size]))
        given = self._clipped.get(bucket.name) or ir.Value(name=bucket.name)
        flat: Sequence[ir.Value] = [given]
        if len(bucket.entries) > 1:
            sizes = self.tape.ints(*(entry.size for entry in bucket.entries))
            parts = [self._value(f"{entry.name}.flat_gradient") for entry in bucket.entries]
            flat = self.tape.ops("Split", [*flat, sizes], parts, axis=0)
        return [
            self.tape.op("Reshape", part, self.tape.ints(*entry.shape))
            for entry, part in zip(bucket.entries, flat, strict=True)
        ]

    def write(
        self, entry: Entry, gradient: ir.Value, dtype: ir.DataType, constrained: bool
    ) -> None:
        """Write the step of one parameter and bind it."""
        slots = [self._slot(f"{entry.name}.{slot}", entry, dtype) for slot in self._optimizer.slots]
        wanted = f"{entry.name}.updated" if constrained else f"{entry.name}.next"
        target = self._output(wanted, entry, dtype, returned=not constrained)
        targets = [self._output(f"{slot.name}.next", entry, dtype) for slot in slots]
        given, found = (self._decayed(entry, dtype), gradient, *slots), (target, *targets)
        _FORMULAS[type(self._optimizer)](self, self._optimizer, entry, given, found, dtype)
        if constrained:
            self.unprojected[entry.name] = str(target.name)
        else:
            self.bindings[entry.name] = str(target.name)
        for slot, following in zip(slots, targets, strict=True):
            self.bindings[str(slot.name)] = str(following.name)

    def factor(self, scalar: ir.Value, entry: Entry) -> ir.Value:
        """Return a scalar with as many axes as a parameter has.

        ONNX Runtime takes one element at a time of a parameter whose last axes have size 1, as 1x1
        kernels have, if the other operand has no axes.
        """
        rank = len(entry.shape)
        if not rank:
            return scalar
        shape = self.tape.ints(*[1] * rank)
        return self._once((scalar, rank), lambda: self.tape.op("Reshape", scalar, shape))

    def learning_rate(self, dtype: ir.DataType) -> ir.Value:
        """Return the learning rate in an element type."""
        return self._once(("learning rate", dtype), lambda: self._cast(self._learning_rate, dtype))

    def adam_rate(self, optimizer: Adam, dtype: ir.DataType) -> ir.Value:
        """Return `lr * sqrt(1 - beta_2 ^ step) / (1 - beta_1 ^ step)`."""
        tape = self.tape

        def write() -> ir.Value:
            step, one = self._cast(self._step, dtype), tape.constant(1.0, dtype)
            rest_1, rest_2 = (
                tape.op("Sub", one, tape.op("Pow", tape.constant(beta, dtype), step))
                for beta in (optimizer.beta_1, optimizer.beta_2)
            )
            corrected = tape.op("Mul", self.learning_rate(dtype), tape.op("Sqrt", rest_2))
            return tape.op("Div", corrected, rest_1)

        return self._once(("adam rate", dtype), write)

    def _decayed(self, entry: Entry, dtype: ir.DataType) -> ir.Value:
        weight, decay = ir.Value(name=entry.name), self._optimizer.weight_decay
        if decay is None or not self._decays(entry):
            return weight
        share = self._once(
            ("decay", dtype),
            lambda: self.tape.op(
                "Mul", self.tape.constant(decay, dtype), self.learning_rate(dtype)
            ),
        )
        lost = self.tape.op("Mul", weight, self.factor(share, entry))
        return self.tape.op("Sub", weight, lost)

    def _decays(self, entry: Entry) -> bool:
        optimizer = self._optimizer
        if optimizer.decay_kernels_only and len(entry.shape) < _AXES_OF_KERNELS:
            return False
        return not matches(optimizer.no_decay, entry.name)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.tape.op("Cast", value, to=int(dtype))

    def _once(self, key: tuple[Any, ...], write: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._known:
            self._known[key] = write()
        return self._known[key]

    def _slot(self, wanted: str, entry: Entry, dtype: ir.DataType) -> ir.Value:
        slot = self._value(wanted)
        values = numpy_helper.from_array(np.zeros(0, dtype.numpy()), slot.name)
        indices = numpy_helper.from_array(np.zeros(0, np.int64))
        self.slots.append(helper.make_sparse_tensor(values, indices, entry.shape))
        return slot

    def _output(
        self, wanted: str, entry: Entry, dtype: ir.DataType, *, returned: bool = True
    ) -> ir.Value:
        value = self._value(wanted)
        if returned:
            self.outputs.append(_info(str(value.name), dtype, entry.shape))
        return value

    def _input(self, wanted: str, dtype: ir.DataType) -> ir.Value:
        value = self._value(wanted)
        self.inputs.append(_info(str(value.name), dtype, []))
        return value

    def _value(self, wanted: str) -> ir.Value:
        return ir.Value(name=graphs.unique_name(wanted, self._taken))

    def _name_node(self, node: ir.Node) -> None:
        wanted = f"update/{node.op_type}"
        for output in node.outputs:
            output.name = output.name or graphs.unique_name(wanted, self._taken)
        node.name = node.outputs[0].name


def _info(name: str, dtype: ir.DataType, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, int(dtype), shape)


def _sgd(
    update: _Update,
    optimizer: Sgd,
    entry: Entry,
    given: tuple[ir.Value, ...],
    targets: tuple[ir.Value, ...],
    dtype: ir.DataType,
) -> None:
    tape, (weight, gradient, *slots) = update.tape, given
    change = tape.op("Mul", gradient, update.factor(update.learning_rate(dtype), entry))
    if not slots:
        tape.op("Sub", weight, change, output=targets[0])
        return
    momentum = update.factor(tape.constant(optimizer.momentum, dtype), entry)
    kept = tape.op("Sub", tape.op("Mul", slots[0], momentum), change, output=targets[1])
    if optimizer.nesterov:
        kept = tape.op("Sub", tape.op("Mul", kept, momentum), change)
    tape.op("Add", weight, kept, output=targets[0])


def _adam(
    update: _Update,
    optimizer: Adam,
    entry: Entry,
    given: tuple[ir.Value, ...],
    targets: tuple[ir.Value, ...],
    dtype: ir.DataType,
) -> None:
    tape, (weight, gradient, mean, square) = update.tape, given
    squared = tape.op("Mul", gradient, gradient)
    for slot, seen, beta, target in (
        (mean, gradient, optimizer.beta_1, targets[1]),
        (square, squared, optimizer.beta_2, targets[2]),
    ):
        difference = tape.op("Sub", seen, slot)
        share = update.factor(tape.constant(1.0 - beta, dtype), entry)
        tape.op("Add", slot, tape.op("Mul", difference, share), output=target)
    root = tape.op("Sqrt", targets[2])
    epsilon, rate = tape.constant(optimizer.epsilon, dtype), update.adam_rate(optimizer, dtype)
    divisor = tape.op("Add", root, update.factor(epsilon, entry))
    step = tape.op("Mul", targets[1], update.factor(rate, entry))
    tape.op("Sub", weight, tape.op("Div", step, divisor), output=targets[0])


def _rmsprop(
    update: _Update,
    optimizer: RMSprop,
    entry: Entry,
    given: tuple[ir.Value, ...],
    targets: tuple[ir.Value, ...],
    dtype: ir.DataType,
) -> None:
    tape, (weight, gradient, square, *slots) = update.tape, given
    rho, rest = (
        update.factor(tape.constant(number, dtype), entry)
        for number in (optimizer.rho, 1.0 - optimizer.rho)
    )
    fresh = tape.op("Mul", tape.op("Mul", gradient, gradient), rest)
    tape.op("Add", tape.op("Mul", square, rho), fresh, output=targets[1])
    epsilon = update.factor(tape.constant(optimizer.epsilon, dtype), entry)
    root = tape.op("Sqrt", tape.op("Add", targets[1], epsilon))
    scaled = tape.op("Mul", gradient, update.factor(update.learning_rate(dtype), entry))
    change = tape.op("Div", scaled, root)
    if slots:
        momentum = update.factor(tape.constant(optimizer.momentum, dtype), entry)
        change = tape.op("Add", tape.op("Mul", slots[0], momentum), change, output=targets[2])
    tape.op("Sub", weight, change, output=targets[0])


_Formula = Callable[
    [_Update, Any, Entry, tuple[ir.Value, ...], tuple[ir.Value, ...], ir.DataType], None
]
_FORMULAS: dict[type[Optimizer], _Formula] = {
    Sgd: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
}
