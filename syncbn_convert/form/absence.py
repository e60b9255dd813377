"""What to say of a model without BatchNormalization: where it went, and how to get it back."""

from __future__ import annotations

import collections

import onnx_ir as ir

from syncbn_convert.form import batchnorm, training_form
from syncbn_convert.graph import constants, graphs, module_names, weighted

NO_BATCHNORM = "the model holds no BatchNormalization"

_OTHERS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
_UNFUSE = "give the layers one again with 'syncbn-convert unfuse MODEL --data DATA'"
_AT_EXPORT = {
    "torch dynamo": "export it with optimize=False",
    "torch script": "export it with training=torch.onnx.TrainingMode.PRESERVE",
    "tf2onnx": "give syncbn-convert the Keras file or SavedModel itself, which keeps it",
    "": "export it without that optimization",
}
_BY = {
    "torch dynamo": "torch.onnx.export(dynamo=True)",
    "torch script": "torch.onnx.export(dynamo=False)",
    "tf2onnx": "tf2onnx",
}


def is_absent(model: ir.Model) -> bool:
    """Whether a model holds no BatchNormalization, synchronized or not."""
    return not training_form.nodes(model) and not any(True for _ in batchnorm.find(model))


def explain(model: ir.Model) -> str:
    """Return, of a model without BatchNormalization, what its user should know, as one line.

    Exporters fuse it into the layers before it unless they are told not to. That of torch with
    dynamo leaves its class in the metadata of these layers, so that they can be counted; of others
    it can only be said that they do so.
    """
    others = collections.Counter(
        node.op_type
        for node, _, _ in graphs.walk(model)
        if node.op_type in _OTHERS and node.domain in graphs.STANDARD_DOMAINS
    )
    text = NO_BATCHNORM
    if others:
        listed = ", ".join(f"{name} ({number})" for name, number in others.items())
        text += f", but {listed}, which looks at one sample at a time"
    fused = [node for node in model.graph if "batch_norm" in module_names.operator_of(node)]
    if fused:
        first = module_names.module_of(fused[0]) or graphs.label(fused[0])
        text += (
            f": torch.onnx.export has fused it into the layers before it ({len(fused)}, the first "
            f"'{first}'); {_AT_EXPORT['torch dynamo']} to keep it, or {_UNFUSE}"
        )
    elif not any(_takes_in(node, model) for node in model.graph):
        text += ", nor a layer with weights that it could have been fused into"
    elif not others or not _wrote_metadata(model):
        text += f"; {_may_have_fused(model)}, or {_UNFUSE}"
    return text


def _may_have_fused(model: ir.Model) -> str:
    producer = _producer(model)
    if producer:
        return (
            f"{_BY[producer]} fuses it into the layers before it: if there was any, "
            f"{_AT_EXPORT[producer]}"
        )
    name = f"'{model.producer_name}', which wrote it," if model.producer_name else "what wrote it"
    return f"if there was any, {name} has fused it into the layers before it: {_AT_EXPORT['']}"


def _producer(model: ir.Model) -> str:
    if model.producer_name == "pytorch":
        return "torch dynamo" if _wrote_metadata(model) else "torch script"
    return "tf2onnx" if model.producer_name == "tf2onnx" else ""


def _wrote_metadata(model: ir.Model) -> bool:
    return any(module_names.SCOPES in node.metadata_props for node in model.graph)


def _takes_in(node: ir.Node, model: ir.Model) -> bool:
    """Whether a node has constant weights, into which a normalization can be fused."""
    if node.op_type not in weighted.OPERATORS or node.domain not in graphs.STANDARD_DOMAINS:
        return False
    index = weighted.OPERATORS[node.op_type].weight
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is not None and (
        value.is_initializer() or constants.constant_tensor(value, model) is not None
    )
