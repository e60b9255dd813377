"""Reverse-mode differentiation: the gradients of a loss as further outputs of the graph."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import opset, provenance, training_form, training_info, weight_facts
from syncbn_convert.form.batchnorm import is_batchnorm
from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.graph import graphs
from syncbn_convert.graph.constants import is_named_constant
from syncbn_convert.passes.gradients import GradientTape
from syncbn_convert.passes.gradients.gradient_tape import MIN_OPSET
from syncbn_convert.passes.gradients.known_types import known_types
from syncbn_convert.passes.gradients.sweep import FLOATS, check_rules, find_path, sweep
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult, matches

logger = logging.getLogger(__name__)

SUFFIX = ".grad"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differentiate(RewritePass):
    """Add the gradient of a loss with respect to every trainable parameter.

    1. Trainable are the floating-point initializers that the loss depends on, except moving
       statistics, what are constants of formulas (scalars, such as the bounds of a Clip, and what
       no variable of Keras became) and what Keras or `convert` has frozen. `trainable` and `frozen`
       choose by name, these too; an expression that is found in no name is an error.
    2. Each becomes a graph input beside its initializer, as moving statistics are, and
       `<name>.grad` a graph output of its type and shape.
    3. On several replicas an output is this replica's share: their sum is the gradient of the loss.
       The loss must be one number, the same on all replicas, as `syncbn::AllReduce` makes it; what
       follows an AllReduce is computed alike by all, so its gradient passes unchanged.
    4. `SyncBatchNormalization` gets `SyncBatchNormalizationGrad`, with one AllReduce of its own.
    5. An operator without a rule between parameter and loss is an error, before anything changes.

    ```
    before   loss = ReduceMean(MatMul(x, w))
    after    ..., w.grad = MatMul(Transpose(x), ...)
    ```

    Attributes:
        loss: Name of a graph output that holds one number.
        trainable: Regular expressions; only initializers whose name one of them is found in.
        frozen: Regular expressions of initializers that are not trained.
    """

    loss: str
    trainable: tuple[str, ...] | None = None
    frozen: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every floating-point initializer gets a record.

        Raises:
            ConversionError: if there is no such loss, nothing to train, or a node on the way whose
                gradient is not known. The model is as it was then.
        """
        journal = Journal(logger)
        loss = self._loss(model)
        _check_opset(model)
        done = {provenance.gradient_of(output) for output in model.graph.outputs}
        chosen = []
        candidates = _candidates(model)
        self._check_patterns(candidates)
        facts = weight_facts.get(model)
        for value in candidates:
            known = facts.get(str(value.name), WeightFacts())
            reason = self._reason_against(value, done, known)
            if reason:
                journal.add(str(value.name), "skipped", reason)
            else:
                chosen.append(value)
        if not chosen and done == {None}:
            raise ConversionError(
                "no initializer is trainable; choose others with --trainable or --frozen"
            )
        modified = bool(chosen) and _differentiate(model, loss, chosen, journal)
        if not modified and done == {None}:
            raise ConversionError(
                f"the loss '{self.loss}' depends on no trainable initializer; name another loss, "
                "or choose others with --trainable or --frozen"
            )
        return journal.result(model, modified=modified)

    def _loss(self, model: ir.Model) -> ir.Value:
        loss = next((value for value in model.graph.outputs if value.name == self.loss), None)
        if loss is None:
            raise ConversionError(
                f"the graph has no output '{self.loss}' to differentiate; its outputs are "
                f"{', '.join(str(value.name) for value in model.graph.outputs)}"
            )
        return loss

    def _check_patterns(self, candidates: Iterable[ir.Value]) -> None:
        """Refuse a regular expression that is found in no name."""
        names = [str(value.name) for value in candidates]
        for flag, patterns in (("trainable", self.trainable), ("frozen", self.frozen)):
            for pattern in patterns or ():
                if not any(matches((pattern,), name) for name in names):
                    first = f"the first of {len(names)} is named '{names[0]}'" if names else "none"
                    raise ConversionError(f"--{flag} '{pattern}' matches no parameter; {first}")

    def _reason_against(self, value: ir.Value, done: set[str | None], known: WeightFacts) -> str:
        name = str(value.name)
        if name in done:
            return "has its gradient already"
        if known.absent or (known.untrained and self.trainable is None):
            return known.untrained
        if self.trainable is None and value.shape is not None and not len(value.shape):
            return "a scalar, which is trained if it is named"
        if self.trainable is None and is_named_constant(value):
            return "no variable of the Keras model, and trained only if it is named"
        if self.trainable is not None and not matches(self.trainable, name):
            return "not trainable"
        return "frozen" if matches(self.frozen, name) else ""


def _check_opset(model: ir.Model) -> None:
    version = graphs.opset_version(model)
    if version < MIN_OPSET:
        raise ConversionError(
            f"gradients are written in opset {MIN_OPSET} or higher, and the model has opset "
            f"{version}; raise it with 'syncbn-convert convert --opset {MIN_OPSET}'"
        )


def _candidates(model: ir.Model) -> list[ir.Value]:
    """Return floating-point initializers that are no moving statistics."""
    projected = training_info.outputs_of(model, provenance.projection_of)
    moving = {
        name
        for name, output in training_info.update_bindings(model).items()
        if output not in projected
    }
    for node in model.graph:
        if training_form.is_sync_batchnorm(node) or is_batchnorm(node):
            moving.update(str(value.name) for value in node.inputs[3:5] if value is not None)
    return [
        value
        for name, value in model.graph.initializers.items()
        if value.dtype in FLOATS and name not in moving
    ]


def _differentiate(
    model: ir.Model, loss: ir.Value, chosen: list[ir.Value], journal: Journal
) -> bool:
    """Write the backward graph; return whether any gradient came out of it."""
    with known_types(model) as keep:
        path = find_path(model, chosen, loss)
        check_rules(path)
        tape = GradientTape(model, path.values)
        try:
            gradients = sweep(tape, path, loss)
            reached = [value for value in chosen if id(value) in gradients]
            outputs = [_output(tape, value, gradients[id(value)]) for value in reached]
        except BaseException:
            tape.undo()
            raise
        for value in chosen:
            if id(value) not in gradients:
                journal.add(str(value.name), "skipped", "no gradient flows into it")
        if not reached:
            tape.undo()
            return False
        keep()
    _commit(model, tape, reached, outputs)
    for value, output in zip(reached, outputs, strict=True):
        journal.add(str(value.name), "differentiated", gradient=output.name)
    return True


def _output(tape: GradientTape, value: ir.Value, gradient: ir.Value) -> ir.Value:
    """Return a value of its own for the gradient of a parameter, under its name."""
    output = tape.publish(gradient, f"{value.name}{SUFFIX}")
    output.type, output.shape = value.type, value.shape
    node = output.producer()
    assert node is not None
    provenance.mark_gradient(node, str(value.name))
    return output


def _commit(
    model: ir.Model, tape: GradientTape, parameters: Iterable[ir.Value], outputs: list[ir.Value]
) -> None:
    opset.raise_ir_version(model, training_form.MIN_IR_VERSION)
    model.graph.extend(tape.nodes)
    for value in parameters:
        if not value.is_graph_input():
            model.graph.inputs.append(value)
    model.graph.outputs.extend(outputs)
    if training_form.DOMAIN in model.opset_imports:
        training_form.add_to(model, graphs.opset_version(model))
