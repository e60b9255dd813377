"""Raising a model's opset and IR version, in place.

Nothing but the nodes that have to change does, so that names, documentation, metadata, annotations
and devices stay. The rules of single operators are in `syncbn_convert.form.rises`;
BatchNormalization, whose mode went from attribute to number of outputs to attribute, is spelled
here as a whole.
"""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm, rises, training_form
from syncbn_convert.form.batchnorm import FIRST_OPSET_WITH_TRAINING_MODE, BatchNorm
from syncbn_convert.graph import graphs, inlining
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.graph.inference_formula import replace_by_elementwise

_OBSOLETE_ATTRIBUTES = ("is_test", "spatial", "consumed_inputs")
_OUTPUTS_IN_TRAINING = 3


def raise_ir_version(model: ir.Model, version: int) -> bool:
    """Raise the IR version to at least `version`; return whether it changed.

    Initializers that were inputs only because IR version 3 demands it leave the inputs: listed,
    they would become overridable, and no runtime could fold or fuse them any more.
    """
    if (model.ir_version or 0) >= version:
        return False
    if (model.ir_version or 0) < FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS:
        graphs.remove_from(model.graph.inputs, list(model.graph.initializers.values()))
    model.ir_version = version
    return True


def raise_opset(model: ir.Model, version: int) -> list[str]:
    """Raise the standard opset to `version` in place and return notes on what that took.

    Raises:
        ConversionError: if the model is newer than `version`, or a node has no way there; the model
            is not to be used then.
    """
    old = graphs.opset_version(model)
    _check_version(old, version)
    if old == version:
        return []
    notes = _inline_functions(model)
    norms = [norm for norm, _ in batchnorm.find(model)]
    for norm in norms:
        _check_can_rise(norm, version)
    notes += rises.rise(model, old, version)
    spelled_out = [norm for norm in norms if not norm.spatial]
    taken = graphs.used_names(model) if spelled_out else set()
    for norm in norms:
        _spell(norm, version)
    for norm in spelled_out:
        replace_by_elementwise(norm.node, epsilon=norm.epsilon, taken=taken)
    for domain in graphs.STANDARD_DOMAINS:
        if domain in model.opset_imports:
            model.opset_imports[domain] = version
    if training_form.DOMAIN in model.opset_imports:
        training_form.add_to(model, version)
    notes.append(f"opset raised from {old} to {version}")
    return notes


def _check_version(old: int, version: int) -> None:
    if old > version:
        raise ConversionError(
            f"the model has opset {old}, which cannot be lowered to {version}; "
            f"ask for --opset {old} or higher, or for none"
        )
    if version > rises.NEWEST:
        raise ConversionError(
            f"opset {version} is newer than {rises.NEWEST}, the newest that the installed onnx "
            "knows; ask for that or a lower one"
        )


def _inline_functions(model: ir.Model) -> list[str]:
    foreign = [key for key in model.functions if key[0] != training_form.DOMAIN]
    if not foreign:
        return []
    names = ", ".join(name for _, name, _ in foreign)
    inlining.inline(model, foreign)
    return [f"model-local functions were inlined to raise the opset: {names}"]


def _check_can_rise(norm: BatchNorm, version: int) -> None:
    name = graphs.label(norm.node)
    if not norm.spatial and norm.training_mode:
        raise ConversionError(
            f"node '{name}' is BatchNormalization with spatial=0 in training mode, which opset "
            f"{version} cannot say; export the model in inference mode"
        )
    for value in norm.saved_outputs:
        if value.uses() or value.is_graph_output():
            raise ConversionError(
                f"node '{name}' has its saved statistic '{value.name}' used, which opset "
                f"{version} does not have; remove that use"
            )


def _spell(norm: BatchNorm, version: int) -> None:
    """Write the mode as opset `version` does, and nothing that it does not have."""
    node, training_mode = norm.node, norm.training_mode
    if norm.spatial:
        for name in _OBSOLETE_ATTRIBUTES:
            node.attributes.pop(name, None)
    if version < FIRST_OPSET_WITH_TRAINING_MODE:
        return
    if training_mode:
        node.attributes.add(ir.AttrInt64("training_mode", 1))
    node.resize_outputs(_OUTPUTS_IN_TRAINING if training_mode else 1)
