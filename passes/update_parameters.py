"""The step of an optimizer, as the training algorithm of the model."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import buckets, provenance, training_info
from syncbn_convert.form.buckets import Bucket, Entry
from syncbn_convert.graph import graphs
from syncbn_convert.options.optimizers import Adam, AdamW, Optimizer, Sgd, describe
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

LEARNING_RATE = "learning_rate"
STEP = "step"
_ELEMENTS = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateParameters(RewritePass):
    """Write the optimizer's step into `training_info`.

    1. The first entry's `algorithm` gets the buckets of gradients as inputs, and `learning_rate`
       (float32) and `step` (int64, the number of the update from 1). It reads the model's
       parameters, and the optimizer's slots, which are initializers of its own, zero at first.
    2. Each parameter is bound to `<name>.next`, each slot to its next value. The formulas, in the
       parameter's element type, are those of Keras.
    3. A constraint that is there already (see `constrain_parameters`) projects what the update
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
        tape = _Tape(taken, description, self.optimizer)
        for bucket in packed:
            for entry, gradient in zip(bucket.entries, tape.split(bucket), strict=True):
                constrained = bindings.get(entry.name) in projected
                if entry.name in bindings and not constrained:
                    raise ConversionError(
                        f"parameter '{entry.name}' is bound to '{bindings[entry.name]}' in "
                        "training_info by the model's own training algorithm; remove that binding"
                    )
                tape.update(entry, gradient, bucket.dtype, constrained)
                journal.add(entry.name, "updated", self.optimizer.name)
        _write(model, tape, bindings)
        return journal.result(model, modified=True)


def _write(model: ir.Model, tape: _Tape, bindings: dict[str, str]) -> None:
    entries = training_info.get(model) or [onnx.TrainingInfoProto()]
    algorithm = entries[0].algorithm
    algorithm.name = algorithm.name or "algorithm"
    projections = list(algorithm.node)
    for node in projections:
        node.input[:] = [tape.unprojected.get(name, name) for name in node.input]
    del algorithm.node[:]
    algorithm.node.extend([*tape.nodes, *projections])
    algorithm.input.extend(tape.inputs)
    algorithm.output.extend(tape.outputs)
    algorithm.sparse_initializer.extend(tape.slots)
    training_info.put(model, entries)
    training_info.set_update_bindings(model, {**bindings, **tape.bindings})


class _Tape:
    """Collects the nodes of the training algorithm, which onnx_ir does not hold."""

    def __init__(self, taken: set[str], description: str, optimizer: Optimizer) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.slots: list[onnx.SparseTensorProto] = []
        self.bindings: dict[str, str] = {}
        self.unprojected: dict[str, str] = {}
        self._taken = taken
        self._description = description
        self._optimizer = optimizer
        self._known: dict[tuple[str, Any], str] = {}
        self._learning_rate = self._input(LEARNING_RATE, onnx.TensorProto.FLOAT)
        self._step = self._input(STEP, onnx.TensorProto.INT64)

    def split(self, bucket: Bucket) -> list[str]:
        """Return the gradients of a bucket, each in its parameter's shape."""
        self.inputs.append(
            helper.make_tensor_value_info(bucket.name, _ELEMENTS[bucket.dtype], [bucket.size])
        )
        flat = [bucket.name]
        if len(bucket.entries) > 1:
            sizes = self.array(np.array([entry.size for entry in bucket.entries]))
            flat = [self._name(f"{entry.name}.flat_gradient") for entry in bucket.entries]
            self._add(helper.make_node("Split", [bucket.name, sizes], flat, axis=0))
        return [
            self.op("Reshape", part, self.array(np.array(entry.shape, dtype=np.int64)))
            for entry, part in zip(bucket.entries, flat, strict=True)
        ]

    def update(self, entry: Entry, gradient: str, dtype: str, constrained: bool) -> None:
        """Write the step of one parameter and bind it."""
        slots = [self._slot(f"{entry.name}.{slot}", entry, dtype) for slot in self._optimizer.slots]
        wanted = f"{entry.name}.updated" if constrained else f"{entry.name}.next"
        target = self._output(wanted, entry, dtype, returned=not constrained)
        targets = [self._output(f"{slot}.next", entry, dtype) for slot in slots]
        given, found = (self._decayed(entry, dtype), gradient, *slots), (target, *targets)
        _FORMULAS[type(self._optimizer)](self, self._optimizer, entry, given, found, dtype)
        if constrained:
            self.unprojected[entry.name] = target
        else:
            self.bindings[entry.name] = target
        self.bindings.update(zip(slots, targets, strict=True))

    def op(self, op_type: str, *inputs: str, to_name: str = "", **attributes: Any) -> str:
        """Write a node of one output."""
        output = to_name or self._name(f"update/{op_type}")
        self._add(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def number(self, value: float, dtype: str) -> str:
        """Return a scalar constant."""
        return self.array(np.array(value, dtype=dtype))

    def array(self, value: npt.NDArray[Any]) -> str:
        """Return a constant; equal ones are written once."""
        key = (str(value.dtype), (value.shape, value.tobytes()))
        if key not in self._known:
            tensor = numpy_helper.from_array(value)
            self._known[key] = self.op("Constant", value=tensor)
        return self._known[key]

    def factor(self, scalar: str, entry: Entry) -> str:
        """Return a scalar with as many axes as a parameter has.

        ONNX Runtime takes one element at a time of a parameter whose last axes have size 1, as 1x1
        kernels have, if the other operand has no axes.
        """
        if not entry.shape:
            return scalar
        shape = self.array(np.ones(len(entry.shape), dtype=np.int64))
        return self._once((scalar, len(entry.shape)), lambda: self.op("Reshape", scalar, shape))

    def learning_rate(self, dtype: str) -> str:
        """Return the learning rate in an element type."""
        return self._once(("learning rate", dtype), lambda: self._cast(self._learning_rate, dtype))

    def adam_rate(self, optimizer: Adam, dtype: str) -> str:
        """Return `lr * sqrt(1 - beta_2 ^ step) / (1 - beta_1 ^ step)`."""

        def write() -> str:
            step, one = self._cast(self._step, dtype), self.number(1.0, dtype)
            rest_1, rest_2 = (
                self.op("Sub", one, self.op("Pow", self.number(beta, dtype), step))
                for beta in (optimizer.beta_1, optimizer.beta_2)
            )
            corrected = self.op("Mul", self.learning_rate(dtype), self.op("Sqrt", rest_2))
            return self.op("Div", corrected, rest_1)

        return self._once(("adam rate", dtype), write)

    def _decayed(self, entry: Entry, dtype: str) -> str:
        decay = self._optimizer.weight_decay
        if decay is None:
            return entry.name
        share = self._once(
            ("decay", dtype),
            lambda: self.op("Mul", self.number(decay, dtype), self.learning_rate(dtype)),
        )
        lost = self.op("Mul", entry.name, self.factor(share, entry))
        return self.op("Sub", entry.name, lost)

    def _cast(self, name: str, dtype: str) -> str:
        return self.op("Cast", name, to=int(_ELEMENTS[dtype]))

    def _once(self, key: tuple[str, Any], write: Callable[[], str]) -> str:
        if key not in self._known:
            self._known[key] = write()
        return self._known[key]

    def _slot(self, wanted: str, entry: Entry, dtype: str) -> str:
        name = self._name(wanted)
        values = numpy_helper.from_array(np.zeros(0, dtype), name)
        indices = numpy_helper.from_array(np.zeros(0, np.int64))
        self.slots.append(helper.make_sparse_tensor(values, indices, entry.shape))
        return name

    def _output(self, wanted: str, entry: Entry, dtype: str, *, returned: bool = True) -> str:
        name = self._name(wanted)
        if returned:
            info = helper.make_tensor_value_info(name, _ELEMENTS[dtype], entry.shape)
            self.outputs.append(info)
        return name

    def _input(self, wanted: str, element: int) -> str:
        name = self._name(wanted)
        self.inputs.append(helper.make_tensor_value_info(name, element, []))
        return name

    def _name(self, wanted: str) -> str:
        return graphs.unique_name(wanted, self._taken)

    def _add(self, node: onnx.NodeProto) -> None:
        node.name = node.name or node.output[0]
        provenance.mark_update(node, self._description)
        self.nodes.append(node)


def _sgd(
    tape: _Tape,
    optimizer: Sgd,
    entry: Entry,
    given: tuple[str, ...],
    targets: tuple[str, ...],
    dtype: str,
) -> None:
    weight, gradient, *slots = given
    change = tape.op("Mul", gradient, tape.factor(tape.learning_rate(dtype), entry))
    if not slots:
        tape.op("Sub", weight, change, to_name=targets[0])
        return
    momentum = tape.factor(tape.number(optimizer.momentum, dtype), entry)
    kept = tape.op("Sub", tape.op("Mul", slots[0], momentum), change, to_name=targets[1])
    if optimizer.nesterov:
        kept = tape.op("Sub", tape.op("Mul", kept, momentum), change)
    tape.op("Add", weight, kept, to_name=targets[0])


def _adam(
    tape: _Tape,
    optimizer: Adam,
    entry: Entry,
    given: tuple[str, ...],
    targets: tuple[str, ...],
    dtype: str,
) -> None:
    weight, gradient, mean, square = given
    squared = tape.op("Mul", gradient, gradient)
    for slot, seen, beta, target in (
        (mean, gradient, optimizer.beta_1, targets[1]),
        (square, squared, optimizer.beta_2, targets[2]),
    ):
        difference = tape.op("Sub", seen, slot)
        share = tape.factor(tape.number(1.0 - beta, dtype), entry)
        tape.op("Add", slot, tape.op("Mul", difference, share), to_name=target)
    root = tape.op("Sqrt", targets[2])
    epsilon, rate = tape.number(optimizer.epsilon, dtype), tape.adam_rate(optimizer, dtype)
    divisor = tape.op("Add", root, tape.factor(epsilon, entry))
    step = tape.op("Mul", targets[1], tape.factor(rate, entry))
    tape.op("Sub", weight, tape.op("Div", step, divisor), to_name=targets[0])


_Formula = Callable[[_Tape, Any, Entry, tuple[str, ...], tuple[str, ...], str], None]
_FORMULAS: dict[type[Optimizer], _Formula] = {Sgd: _sgd, Adam: _adam, AdamW: _adam}
