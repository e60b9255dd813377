"""The modules of PyTorch that nodes come from, as its exporters let them be known."""

from __future__ import annotations

import ast

import onnx_ir as ir

from syncbn_convert.graph import graphs

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the paths of the modules around it from the outside in, and its own name."""

_CLASSES = "pkg.torch.onnx.class_hierarchy"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
INSERTED = "/batchnorm"
"""How the names end of the normalizations that `unfuse` inserts after a node."""
_PARAMETERS = frozenset(["weight", "bias", "running_mean", "running_var"])


def module_of(node: ir.Node) -> str:
    """Return the path of a node's module, such as `layer1.0.bn1`; empty where it is not known.

    It is told by the metadata of `torch.onnx.export(dynamo=True)`, by the names of the parameters
    that the node reads, or by the node's own name, which `dynamo=False` makes of it.
    """
    return _of_scopes(node) or _of_parameters(node) or _of_path(node.name or "")


def names_of(node: ir.Node) -> tuple[str, ...]:
    """Return what a node may be called in a pattern: its name, and its module if that is known."""
    name, module = graphs.label(node), module_of(node)
    return (name, module) if module and module != name else (name,)


def operator_of(node: ir.Node) -> str:
    """Return the operator of PyTorch that a node was made of, such as `aten.conv2d.default`.

    What torch's exporter fuses has the metadata of the last part. Empty where it is not known.
    """
    return _last(_listed(node.metadata_props.get(_CLASSES)), 1)


def _of_scopes(node: ir.Node) -> str:
    return _last(_listed(node.metadata_props.get(SCOPES)), 2)


def _listed(text: str | None) -> list[str]:
    """Return the strings of a list that is written as Python writes it; none of anything else."""
    try:
        found = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    named = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return found if named else []


def _last(items: list[str], number: int) -> str:
    return items[-number] if len(items) >= number else ""


def _of_parameters(node: ir.Node) -> str:
    found = {
        module
        for value in node.inputs[1:]
        if value is not None
        for module, _, parameter in [str(value.name).rpartition(".")]
        if parameter in _PARAMETERS
    }
    return found.pop() if len(found) == 1 else ""


def _of_path(name: str) -> str:
    """Return the module of a node that is called as in `/layer1/layer1.0/bn1/BatchNormalization`.

    A module in a container is written with the container's name: `layer1.0` is in `layer1`.
    """
    if not name.startswith("/"):
        return ""
    parts: list[str] = []
    for scope in name.removesuffix(INSERTED)[1:].split("/")[:-1]:
        if parts and scope.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(scope)
    return ".".join(parts)
