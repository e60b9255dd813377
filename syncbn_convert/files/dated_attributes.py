"""Attributes that a node's opset does not have: left out where they say what it means anyway.

Exporters write `spatial=1` or `consumed_inputs` into opsets that have neither any more, and others
write the default of an attribute that a later opset brought. No checker and no runtime takes them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.files import lenient
from syncbn_convert.form.batchnorm import FIRST_OPSET_WITH_TRAINING_MODE
from syncbn_convert.graph import graphs

_NEWEST = onnx.defs.onnx_opset_version()
_FIRST_WITHOUT_IS_TEST = 7
_FIRST_DROPOUT_WITH_MODE = 12
_MODE_OF_DROPOUT = 2
_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less", "PRelu"),
    "Gemm",
)
_CHANGED_WITH_THE_OPERATOR = frozenset(["coordinate_transformation_mode", "nearest_mode"])
"""What came as an attribute with another default than what the operator did before."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A node, as far as attributes depend on it.

    Attributes:
        op_type: Operator of standard ONNX.
        opset: What it is written in.
        attributes: Values by name.
        inputs: Number of inputs.
        outputs: Number of outputs that have a name.
    """

    op_type: str
    opset: int
    attributes: dict[str, Any]
    inputs: int
    outputs: int

    @property
    def trains(self) -> bool:
        """Whether a BatchNormalization is in training mode, by what its opset looks at."""
        if self.opset >= FIRST_OPSET_WITH_TRAINING_MODE:
            return bool(self.attributes.get("training_mode", 0))
        if self.opset >= _FIRST_WITHOUT_IS_TEST:
            return self.outputs > 1
        return not self.attributes.get("is_test", 0)


def foreign(site: Site) -> dict[str, bool]:
    """Return the attributes that a node's opset does not have and another one has.

    Each has whether the node means the same without it.
    """
    known = _attributes(site.op_type, site.opset)
    if known is None:
        return {}
    return {
        name: _says_the_same(site, name)
        for name in site.attributes
        if name not in known and _is_of_another_opset(site.op_type, name)
    }


def leave_out(proto: onnx.ModelProto) -> list[str]:
    """Take such attributes out of a protobuf, in place; return notes about them.

    Raises:
        ConversionError: if a node means something else without one.
    """
    found: _Found = {}
    for holder, body in lenient.holders(proto):
        opset = next((e.version for e in holder.opset_import if e.domain in ("", "ai.onnx")), 0)
        for node in (node for graph in lenient.bodies(body) for node in graph.node):
            if node.domain not in graphs.STANDARD_DOMAINS or not node.attribute:
                continue
            site = Site(
                node.op_type,
                opset,
                {a.name: _as_text(onnx.helper.get_attribute_value(a)) for a in _plain(node)},
                len(node.input),
                sum(map(bool, node.output)),
            )
            gone = _judged(site, node.name or f"{node.op_type}({node.output[0]})", found)
            if gone:
                kept = [attribute for attribute in node.attribute if attribute.name not in gone]
                del node.attribute[:]
                node.attribute.extend(kept)
    return _notes(found)


def leave_out_of(model: ir.Model) -> list[str]:
    """Do the same to a model in memory.

    Raises:
        ConversionError: as `leave_out`.
    """
    found: _Found = {}
    for node, _, function in graphs.walk(model):
        if node.domain not in graphs.STANDARD_DOMAINS or not node.attributes:
            continue
        main = graphs.opset_version(model)
        site = Site(
            node.op_type,
            main if function is None else function.opset_imports.get("", main),
            {
                name: attribute.value
                for name, attribute in node.attributes.items()
                if attribute.type in _PLAIN_KINDS and not attribute.is_ref()
            },
            len(node.inputs),
            sum(bool(value.name) for value in node.outputs),
        )
        for name in _judged(site, graphs.label(node), found):
            node.attributes.pop(name)
    return _notes(found)


_Found = dict[tuple[str, str, str, int], list[str]]
"""Labels of nodes by operator, attribute, its value and the opset."""
_PLAIN_KINDS = (
    ir.AttributeType.FLOAT,
    ir.AttributeType.FLOATS,
    ir.AttributeType.INT,
    ir.AttributeType.INTS,
    ir.AttributeType.STRING,
)


def _plain(node: onnx.NodeProto) -> Iterator[onnx.AttributeProto]:
    kinds = {int(kind.value) for kind in _PLAIN_KINDS}
    return (a for a in node.attribute if a.type in kinds and not a.ref_attr_name)


def _as_text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _judged(site: Site, label: str, found: _Found) -> list[str]:
    """Return the attributes that may go, which are added to what was found."""
    gone = []
    for name, same in foreign(site).items():
        value = site.attributes[name]
        if not same:
            raise ConversionError(
                f"node '{label}': {site.op_type} of opset {site.opset} has no attribute '{name}', "
                f"and {name}={value} is not what it means without; export the model again, or in "
                "the opset that has it"
            )
        found.setdefault((site.op_type, name, str(value), site.opset), []).append(label)
        gone.append(name)
    return gone


def _notes(found: _Found) -> list[str]:
    notes = []
    for (op_type, name, value, opset), labels in found.items():
        nodes = f"node '{labels[0]}'"
        if len(labels) > 1:
            nodes = f"{len(labels)} {op_type} nodes, the first '{labels[0]}',"
        notes.append(
            f"attribute {name}={value} of {nodes} is none of opset {opset}, which means the same "
            "without it: left out"
        )
    return notes


def _says_the_same(site: Site, name: str) -> bool:
    if name == "consumed_inputs":
        return True
    rule = _RULES.get((site.op_type, name))
    if rule is not None:
        return rule(site, site.attributes[name])
    if name in _CHANGED_WITH_THE_OPERATOR:
        return False
    for version in range(site.opset + 1, _NEWEST + 1):
        later = _attributes(site.op_type, version) or {}
        if name in later:
            default = later[name].default_value
            given = onnx.helper.get_attribute_value(default) if default.name else None
            return given is not None and _as_text(given) == site.attributes[name]
    return False


def _same_mode_of_batchnorm(site: Site, value: int, *, trains: int) -> bool:
    return site.trains == (value == trains)


def _only_tests(site: Site, value: int) -> bool:
    """Dropout has no mode from opset 7 on, and from opset 12 on an input for it."""
    drops = site.opset >= _FIRST_DROPOUT_WITH_MODE and site.inputs > _MODE_OF_DROPOUT
    return bool(value) and not drops


def _does_not_drop(site: Site, value: object) -> bool:
    del value
    return site.inputs <= _MODE_OF_DROPOUT


def _always(site: Site, value: object) -> bool:
    del site, value
    return True


_RULES: dict[tuple[str, str], Callable[[Site, Any], bool]] = {
    ("BatchNormalization", "spatial"): lambda _, value: bool(value),
    ("BatchNormalization", "is_test"): functools.partial(_same_mode_of_batchnorm, trains=0),
    ("BatchNormalization", "training_mode"): functools.partial(_same_mode_of_batchnorm, trains=1),
    ("Dropout", "is_test"): _only_tests,
    ("Dropout", "ratio"): _does_not_drop,
    ("Dropout", "seed"): _does_not_drop,
    **{(op_type, "output_sequence"): _always for op_type in ("GRU", "LSTM", "RNN")},
    **{
        (op_type, "broadcast"): lambda site, _: "axis" not in site.attributes
        for op_type in _BROADCASTING
    },
}


@functools.cache
def _attributes(op_type: str, opset: int) -> dict[str, onnx.defs.OpSchema.Attribute] | None:
    try:
        return dict(onnx.defs.get_schema(op_type, opset, "").attributes)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def _is_of_another_opset(op_type: str, name: str) -> bool:
    versions = range(1, _NEWEST + 1)
    return any(name in (_attributes(op_type, version) or ()) for version in versions)
