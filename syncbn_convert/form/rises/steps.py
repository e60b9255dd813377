"""From one opset to the next: rules of operators whose nodes change, and the check of the others.

A node whose operator has a rule at an opset is spelled anew by it. Any other node stays as it is
where the new schema takes it: the attributes that it has are there, with their types, and so many
inputs and outputs. A default that changed is written out. What does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.defs
import onnx_ir as ir

from syncbn_convert.form.rises.site import Site
from syncbn_convert.graph import graphs, value_types

Rule = Callable[[Site], None]

NEWEST = onnx.defs.onnx_opset_version()
_FIRST_OPSET_WITHOUT_CONSUMED_INPUTS = 6
_FIRST_OPSET_WITHOUT_GUESSES = 13
"""From there on no rule asks for a rank or an element type."""
_ELSEWHERE = ("BatchNormalization",)
"""Operators that are spelled anew as a whole, by `syncbn_convert.form.opset`."""

_rules: dict[tuple[str, int], Rule] = {}


def rule(*op_types: str, opset: int) -> Callable[[Rule], Rule]:
    """Register the decorated function as what operators need to rise to `opset`."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            _rules[op_type, opset] = function
        return function

    return register


def rise(model: ir.Model, old: int, new: int) -> list[str]:
    """Spell the nodes of a model's graph and its bodies in opset `new` instead of `old`, in place.

    Returns:
        Notes about nodes that do not mean the same any more.

    Raises:
        ConversionError: naming the first node that cannot; the model is half done then.
    """
    names, notes = graphs.Names(model), []
    with value_types.stated(model, everywhere=old < _FIRST_OPSET_WITHOUT_GUESSES):
        for opset in range(old + 1, new + 1):
            for node in list(model.graph.all_nodes()):
                if node.domain not in graphs.STANDARD_DOMAINS or node.op_type in _ELSEWHERE:
                    continue
                if onnx.defs.has(node.op_type) and _changes(node.op_type, opset):
                    site = Site(node, opset, names)
                    _rules.get((node.op_type, opset), keep)(site)
                    notes += site.notes
    return notes


def keep(site: Site) -> None:
    """Leave a node as it is, if that means the same in the next opset."""
    old, new = (_schema(site.node.op_type, version) for version in (site.opset - 1, site.opset))
    assert new is not None
    if old is None:
        return
    if new.deprecated:
        site.refuse("it is no operator any more")
    _keep_attributes(site, old, new)
    for what, count, least, most in (
        ("inputs", len(site.node.inputs), new.min_input, new.max_input),
        ("outputs", len(site.node.outputs), new.min_output, new.max_output),
    ):
        if not least <= count <= most:
            site.refuse(f"it has {count} {what}, and that opset takes {least} to {most}")


def _keep_attributes(site: Site, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> None:
    attributes = site.node.attributes
    if site.opset == _FIRST_OPSET_WITHOUT_CONSUMED_INPUTS:
        attributes.pop("consumed_inputs", None)
    for name, attribute in attributes.items():
        if name not in new.attributes:
            site.refuse(f"that opset does not have its attribute '{name}'")
        if new.attributes[name].type != getattr(onnx.defs.OpSchema.AttrType, attribute.type.name):
            site.refuse(f"its attribute '{name}' is of another type there")
    for name, given in old.attributes.items():
        default, there = given.default_value, new.attributes.get(name)
        changed = there is not None and there.default_value != default
        if changed and default.name and name not in attributes:
            attributes.add(ir.serde.deserialize_attribute(default))
    for name, wanted in new.attributes.items():
        if wanted.required and name not in attributes:
            site.refuse(f"that opset wants an attribute '{name}'")


def _changes(op_type: str, opset: int) -> bool:
    schema = _schema(op_type, opset)
    return schema is not None and schema.since_version == opset


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
