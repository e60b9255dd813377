"""What a converted node was, kept in its metadata so that folding gives the original node back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from syncbn_convert.doors.nested_text import parse_json
from syncbn_convert.errors import ConversionError, UsageError
from syncbn_convert.form import batchnorm
from syncbn_convert.options.toml import options_from

PREFIX = "syncbn_convert."
"""Of the keys in metadata that are about the training form."""
_ATTRIBUTES = PREFIX + "attributes"
_SPLIT_FROM = {"input_mean": PREFIX + "input_mean", "input_var": PREFIX + "input_var"}
_PENALTY = PREFIX + "regularization"
_GRADIENT = PREFIX + "gradient_of"
_LOSS = PREFIX + "loss"
_PROJECTION = PREFIX + "projection"
_UPDATE = PREFIX + "update"
_KEPT = PREFIX + "kept_because"
_LAYER = PREFIX + "keras_layer"
_OPTIONS = PREFIX + "layer_options"
_DRAW = PREFIX + "draw"
_FROZEN = PREFIX + "frozen_because"
_RANDOM_KEY = PREFIX + "random_key"
_ALONE = PREFIX + "loss_of_one_replica"
_REMARKS = PREFIX + "remarks"
_RESTORABLE = ("epsilon", "momentum", "training_mode")
_LARGEST = 1e38
"""Beyond it, no attribute holds a number."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The original BatchNormalization.

    Attributes:
        attributes: Names and values as they were written, in order; defaults are not among them.
        split_from: Original names of moving statistics that were split off, by role.
    """

    attributes: dict[str, float | int]
    split_from: dict[str, str]

    @property
    def training_mode(self) -> bool:
        """Whether the original normalized by batch statistics."""
        return bool(self.attributes.get("training_mode", 0))


def of_original(node: ir.Node) -> Provenance:
    """Describe a canonical BatchNormalization node before it is converted."""
    attributes = {
        name: attribute.value for name, attribute in node.attributes.items() if name in _RESTORABLE
    }
    return Provenance(attributes, {})


def write(node: ir.Node, provenance: Provenance) -> None:
    """Keep `provenance` in the node's metadata."""
    node.metadata_props[_ATTRIBUTES] = json.dumps(provenance.attributes)
    for role, name in provenance.split_from.items():
        node.metadata_props[_SPLIT_FROM[role]] = name


def check(model: ir.Model) -> None:
    """Refuse a model whose notes about the training form are not what this package writes.

    Raises:
        ConversionError: naming the node and the note.
    """
    for node in model.graph:
        for key in node.metadata_props:
            if key.startswith(PREFIX) and (fault := _note_fault(key, node.metadata_props[key])):
                raise ConversionError(
                    f"node '{node.name or node.op_type}': its note '{key}' is damaged ({fault}); "
                    "remove it, or take the file that 'syncbn-convert' wrote"
                )


def _note_fault(key: str, text: str) -> str:
    kind = {_ATTRIBUTES: dict, _OPTIONS: dict, _DRAW: dict, _PENALTY: list, _REMARKS: list}.get(key)
    if kind is None:
        return ""
    try:
        content = parse_json(text, kind)
    except ValueError as error:
        return str(error)
    if key == _ATTRIBUTES:
        return next((f for name, v in content.items() if (f := _attribute_fault(name, v))), "")
    if key == _OPTIONS:
        try:
            options_from(content)
        except UsageError as error:
            return str(error)
    elif kind is list and not all(isinstance(entry, str) for entry in content):
        return "an entry that is no text"
    return ""


def _attribute_fault(name: str, value: object) -> str:
    if name not in _RESTORABLE:
        return f"unknown attribute '{name}'"
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return f"{name} is no usual number"
    return f"{name} is no integer" if name == "training_mode" and value not in (0, 1) else ""


def read(node: ir.Node) -> Provenance | None:
    """Return what `write` kept, or None where it kept nothing."""
    text = node.metadata_props.get(_ATTRIBUTES)
    if text is None:
        return None
    split = {
        role: node.metadata_props[key]
        for role, key in _SPLIT_FROM.items()
        if key in node.metadata_props
    }
    return Provenance(parse_json(text, dict), split)


def unsynchronized(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that hold state as a training form does, but are not synchronized."""
    return [node for node in model.graph if batchnorm.is_batchnorm(node) and read(node) is not None]


def erase(node: ir.Node) -> None:
    """Remove what `write` kept."""
    for key in (_ATTRIBUTES, *_SPLIT_FROM.values()):
        node.metadata_props.pop(key, None)


def mark_kept(node: ir.Node, reason: str) -> None:
    """Keep why the framework that the node comes from has it stay in inference mode."""
    node.metadata_props[_KEPT] = reason


def forget_kept(node: ir.Node) -> None:
    """Remove what `mark_kept` kept."""
    node.metadata_props.pop(_KEPT, None)


def kept_because(node: ir.Node) -> str:
    """Return what `mark_kept` kept, or an empty string."""
    return node.metadata_props.get(_KEPT, "")


def mark_frozen(node: ir.Node, reason: str) -> bool:
    """Keep why a user has the node stay in inference mode; return whether that is new."""
    if node.metadata_props.get(_FROZEN) == reason:
        return False
    node.metadata_props[_FROZEN] = reason
    return True


def frozen_because(node: ir.Node) -> str:
    """Return what `mark_frozen` kept, or an empty string."""
    return node.metadata_props.get(_FROZEN, "")


def forget_frozen(node: ir.Node) -> bool:
    """Remove what `mark_frozen` kept; return whether it kept anything."""
    return node.metadata_props.pop(_FROZEN, None) is not None


def mark_draw(node: ir.Node, draw: Mapping[str, Any]) -> None:
    """Keep what an Identity draws in training, as `passes/switch_randomness_on.py` reads it."""
    node.metadata_props[_DRAW] = json.dumps(draw)


def draw_of(node: ir.Node) -> dict[str, Any] | None:
    """Return what `mark_draw` kept, or None."""
    text = node.metadata_props.get(_DRAW)
    kept: dict[str, Any] | None = None if text is None else parse_json(text, dict)
    return kept


def forget_draw(node: ir.Node) -> None:
    """Remove what `mark_draw` kept."""
    node.metadata_props.pop(_DRAW, None)


def mark_random_key(model: ir.Model, name: str) -> None:
    """Keep which graph input the model's random numbers follow from."""
    model.metadata_props[_RANDOM_KEY] = name


def random_key_of(model: ir.Model) -> str | None:
    """Return what `mark_random_key` kept, or None."""
    return model.metadata_props.get(_RANDOM_KEY)


def mark_alone(model: ir.Model, reason: str) -> None:
    """Keep why the loss holds on one replica alone."""
    model.metadata_props[_ALONE] = reason


def alone_because(model: ir.Model) -> str:
    """Return what `mark_alone` kept, or an empty string."""
    return model.metadata_props.get(_ALONE, "")


def mark_layer(
    node: ir.Node, path: str, *, options: Mapping[str, Any], remarks: Iterable[str]
) -> None:
    """Keep which layer of Keras a node comes from.

    Args:
        node: The node.
        path: Path of the layer, with which the names of its variables begin.
        options: Fields of `SyncBatchNormalizationOptions`, as JSON types, that the layer has and
            that an attribute of the node cannot say; options of the user go before them.
        remarks: What a user should know about the layer, for the notes of a report.
    """
    node.metadata_props[_LAYER] = path
    if options:
        node.metadata_props[_OPTIONS] = json.dumps(options)
    if remarks := list(remarks):
        node.metadata_props[_REMARKS] = json.dumps(remarks)


def layer_of(node: ir.Node) -> str | None:
    """Return the path of the Keras layer that `mark_layer` kept, or None."""
    return node.metadata_props.get(_LAYER)


def layer_options(node: ir.Node) -> dict[str, Any]:
    """Return the options that `mark_layer` kept."""
    options: dict[str, Any] = parse_json(node.metadata_props.get(_OPTIONS, "{}"), dict)
    return options


def remarks(node: ir.Node) -> list[str]:
    """Return the remarks that `mark_layer` kept."""
    kept: list[str] = parse_json(node.metadata_props.get(_REMARKS, "[]"), list)
    return kept


def mark_penalty(node: ir.Node, parameters: Iterable[str]) -> None:
    """Mark the node that returns the regularization loss of `parameters`, layer by layer."""
    node.metadata_props[_PENALTY] = json.dumps(sorted(parameters))


def penalized_by(node: ir.Node) -> set[str]:
    """Return what `mark_penalty` kept."""
    return set(parse_json(node.metadata_props[_PENALTY], list))


def is_penalty(node: ir.Node) -> bool:
    """Whether `mark_penalty` marked the node."""
    return _PENALTY in node.metadata_props


def mark_gradient(node: ir.Node, parameter: str) -> None:
    """Mark the node that returns the gradient of `parameter`."""
    node.metadata_props[_GRADIENT] = parameter


def gradient_of(value: ir.Value) -> str | None:
    """Return the parameter whose gradient the marked node of `value` returns, or None."""
    node = value.producer()
    return node.metadata_props.get(_GRADIENT) if node is not None else None


def mark_loss(node: ir.Node, description: str) -> None:
    """Mark the node that returns the loss, with what it is of."""
    node.metadata_props[_LOSS] = description


def loss_of(node: ir.Node) -> str | None:
    """Return what `mark_loss` kept, or None."""
    return node.metadata_props.get(_LOSS)


def mark_projection(node: onnx.NodeProto, constraint: str) -> None:
    """Mark a node of the training algorithm that projects a parameter, with the constraint."""
    node.metadata_props.add(key=_PROJECTION, value=constraint)


def projection_of(node: onnx.NodeProto) -> str | None:
    """Return the constraint that `mark_projection` kept, or None."""
    return _metadata_of(node, _PROJECTION)


def is_projection(node: onnx.NodeProto) -> bool:
    """Whether `mark_projection` marked the node."""
    return projection_of(node) is not None


def mark_update(node: onnx.NodeProto, optimizer: str) -> None:
    """Mark a node of the training algorithm that belongs to an optimizer's step."""
    node.metadata_props.add(key=_UPDATE, value=optimizer)


def update_of(node: onnx.NodeProto) -> str | None:
    """Return the optimizer that `mark_update` kept, or None."""
    return _metadata_of(node, _UPDATE)


def _metadata_of(node: onnx.NodeProto, key: str) -> str | None:
    return next((entry.value for entry in node.metadata_props if entry.key == key), None)
