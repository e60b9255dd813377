"""Raising a model's opset and IR version, BatchNormalization nodes carried across by us.

ONNX's version converter has no way for BatchNormalization in training mode, and drops what it does
not know. So these nodes travel as operators of a domain of their own and are spelled anew on the
other side; interface, documentation and metadata are put back from the original.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from syncbn_convert.errors import ConversionError, first_line
from syncbn_convert.form import batchnorm, training_form
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.graph.inference_formula import replace_by_elementwise
from syncbn_convert.graph.light_proto import light_proto

_CARRIER_DOMAIN = "syncbn_convert.carrier"
_TAG = "syncbn_convert.node."
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
        ConversionError: if the model is newer than `version`, or an operator has no way there.
    """
    old = graphs.opset_version(model)
    if old > version:
        raise ConversionError(
            f"the model has opset {old}, which cannot be lowered to {version}; "
            f"ask for --opset {old} or higher, or for none"
        )
    if old == version:
        return []
    notes = _inline_functions(model)
    norms = [norm for norm, _ in batchnorm.find(model)]
    for norm in norms:
        _check_can_rise(norm, version)
    names = _tag(model)
    spellings = {str(norm.node.name): _spelling(norm) for norm in norms}
    for norm in norms:
        norm.node.domain = _CARRIER_DOMAIN
    model.opset_imports[_CARRIER_DOMAIN] = 1
    try:
        converted = onnx.version_converter.convert_version(light_proto(model), version)
    except Exception as error:  # the converter raises RuntimeError and its own ConvertError
        _untag(model, names)
        for norm in norms:
            norm.node.domain = ""
        model.opset_imports.pop(_CARRIER_DOMAIN)
        raise ConversionError(
            f"the opset cannot be raised from {old} to {version}: {first_line(error)}; "
            "export the model again with a newer opset"
        ) from error
    risen = ir.from_proto(converted)
    carriers = [
        (node, spellings[str(node.name)])
        for node in risen.graph.all_nodes()
        if node.domain == _CARRIER_DOMAIN
    ]
    _restore(risen, model, names)
    _untag(model, names)
    taken = graphs.used_names(risen) if carriers else set()
    for node, spell in carriers:
        spell(node, taken=taken)
    model.graph = risen.graph
    model.opset_imports.pop(_CARRIER_DOMAIN, None)
    if training_form.DOMAIN in model.opset_imports:
        training_form.add_to(model, version)
    notes.append(f"opset raised from {old} to {version}")
    return notes


def _tag(model: ir.Model) -> dict[str, str | None]:
    """Give every node a name of its own, by which it is known again; return the old names."""
    names: dict[str, str | None] = {}
    for number, node in enumerate(model.graph.all_nodes()):
        names[f"{_TAG}{number}"] = node.name
        node.name = f"{_TAG}{number}"
    return names


def _untag(model: ir.Model, names: dict[str, str | None]) -> None:
    for node in model.graph.all_nodes():
        node.name = names[str(node.name)]


def _inline_functions(model: ir.Model) -> list[str]:
    foreign = [key for key in model.functions if key[0] != training_form.DOMAIN]
    if not foreign:
        return []
    names = ", ".join(name for _, name, _ in foreign)
    InlinePass(criteria=lambda function: function.domain != training_form.DOMAIN)(model)
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


def _spelling(norm: BatchNorm) -> Callable[..., None]:
    """Return what turns the carrier of `norm` into operators of the new opset."""
    if not norm.spatial:
        return partial(replace_by_elementwise, epsilon=norm.epsilon)
    attributes = [
        attribute
        for name, attribute in norm.node.attributes.items()
        if name not in _OBSOLETE_ATTRIBUTES
    ]
    return partial(_spell_batchnorm, attributes=attributes, training_mode=norm.training_mode)


def _spell_batchnorm(
    node: ir.Node, attributes: list[ir.Attr], *, training_mode: bool, taken: set[str]
) -> None:
    del taken
    node.domain = ""
    node.attributes.clear()
    for attribute in attributes:
        node.attributes.add(attribute)
    if training_mode:
        node.attributes.add(ir.AttrInt64("training_mode", 1))
    node.resize_outputs(_OUTPUTS_IN_TRAINING if training_mode else 1)


def _restore(risen: ir.Model, original: ir.Model, names: dict[str, str | None]) -> None:
    """Give the risen graph back what the version converter does not carry."""
    graph, source = risen.graph, original.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    graph.metadata_props.update(source.metadata_props)
    by_name = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    graph.inputs.clear()
    graph.inputs.extend(by_name[value.name] for value in source.inputs)
    for name, value in source.initializers.items():
        target = by_name[name]
        target.const_value = value.const_value
        graph.initializers[name] = target
    for new, old in zip(
        (*graph.inputs, *graph.outputs), (*source.inputs, *source.outputs), strict=True
    ):
        new.type, new.shape = old.type, old.shape
        new.doc_string = old.doc_string
    originals = {str(node.name): node for node in source.all_nodes()}
    for node in graph.all_nodes():
        old_node = originals.get(str(node.name))
        if old_node is not None:
            node.name = names[str(old_node.name)]
            node.doc_string = old_node.doc_string
            node.metadata_props.update(old_node.metadata_props)
