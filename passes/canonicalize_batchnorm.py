"""Any opset's and exporter's BatchNormalization to the current one with initializer parameters."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.form import batchnorm, opset, training_form, weight_facts
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.graph import constants, graphs, inlining
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanonicalizeBatchNorm(RewritePass):
    """Spell every BatchNormalization as the current opset does.

    1. Model-local functions that hold a BatchNormalization, themselves or through another function,
       are inlined, so that each call has a node and a state of its own.
    2. The IR version rises to 10, the first that can keep metadata on nodes, and the opset to 15,
       the first whose operators the training form is built of. Attributes that went out of the
       standard (`is_test`, `spatial=1`, `consumed_inputs`) become `training_mode`; empty and saved
       outputs go.
    3. Parameters that are results of constant operators become initializers of the same name.
       Training leaves those that a Constant held as they are.

    ```
    before (opset 9)                            after (opset 15)
    s = ConstantOfShape(shape)                  float[8] s = {1, ...}
    y = BatchNormalization(x, s, b, m, v)       y = BatchNormalization(x, s, b, m, v)
    ```

    Attributes:
        opset: Opset of the result; None raises it only as far as needed.
    """

    opset: int | None = None

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place."""
        journal = Journal(logger)
        modified = False
        training_form.check_domain(model)
        if self.opset is not None or any(True for _ in batchnorm.find(model)):
            modified |= _inline_functions(model, journal)
            modified |= opset.raise_ir_version(model, training_form.MIN_IR_VERSION)
            modified |= self._raise_opset(model, journal)
            for norm, location in list(batchnorm.find(model)):
                if not location:
                    modified |= _make_parameters_initializers(norm, model, journal)
        return journal.result(model, modified=modified)

    def _raise_opset(self, model: ir.Model, journal: Journal) -> bool:
        current = graphs.opset_version(model)
        target = self.opset or max(current, training_form.MIN_OPSET)
        odd = [(norm, at) for norm, at in batchnorm.find(model) if not norm.spatial]
        details = [norm.detail() for norm, _ in odd]
        notes = opset.raise_opset(model, target)
        for (norm, location), detail in zip(odd, details, strict=True):
            reason = "spatial=0 normalizes each activation: spelled as elementwise operators"
            journal.add(norm.node, "skipped", reason, location=location, **detail)
        for note in notes:
            journal.note(note)
        return bool(notes)


def _inline_functions(model: ir.Model, journal: Journal) -> bool:
    holders = graphs.functions_with(
        model,
        lambda node, function: (
            batchnorm.is_batchnorm(node) and function.domain != training_form.DOMAIN
        ),
    )
    if not holders:
        return False
    names = ", ".join(sorted(f"{domain}::{name}" for domain, name, _ in holders))
    journal.note(f"model-local functions with BatchNormalization were inlined: {names}")
    inlining.inline(model, holders)
    return True


def _make_parameters_initializers(norm: BatchNorm, model: ir.Model, journal: Journal) -> bool:
    computed = {
        role: value for role, value in norm.parameters.items() if value.producer() is not None
    }
    replaced: list[str] = []
    for role, value in computed.items():
        tensor = constants.constant_tensor(value, model)
        if tensor is not None:
            replaced.append(f"{role} from {_operator_of(value)}")
            _tell_untrained(role, value, tensor, model)
            constants.replace_by_initializer(value, tensor, model.graph)
    if replaced:
        journal.add(norm.node, "canonicalized", ", ".join(replaced))
    return bool(replaced)


def _tell_untrained(role: str, value: ir.Value, tensor: ir.TensorProtocol, model: ir.Model) -> None:
    """Keep that a Constant is no parameter; of ones or zeros, the layer has none there."""
    if role in _NEUTRAL and _is_written_out(value):
        neutral = bool((tensor.numpy() == _NEUTRAL[role]).all())
        reason = _ABSENT if neutral else _CONSTANT
        facts = WeightFacts(untrained=reason, absent=neutral)
        weight_facts.add(model, str(value.name), facts)


def _is_written_out(value: ir.Value) -> bool:
    """Whether a Constant holds the numbers of a value, which are at most repeated or cast."""
    node = value.producer()
    while node is not None and node.op_type in _PASSING_ON and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Constant"


_PASSING_ON = ("Cast", "CastLike", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_NEUTRAL = {"scale": 1.0, "B": 0.0}
_ABSENT = "a Constant in place of a parameter that the layer does not have"
_CONSTANT = "a Constant of the model, and trained only if it is named"


def _operator_of(value: ir.Value) -> str:
    producer = value.producer()
    return producer.op_type if producer is not None else "initializer"
