"""A training form whose functions another tool has renamed: given its own names again.

`onnx.compose` puts a prefix before the names of functions, and leaves `training_info` as it was.
A function is known by its inputs and outputs, and by the Identity that it calls as a function.
"""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, training_form, training_info
from syncbn_convert.graph import graphs

_Names = dict[ir.OperatorIdentifier, str]


def restore(model: ir.Model) -> bool:
    """Give functions of the training form their names again, in place; return whether any had not.

    Raises:
        ConversionError: if there are two of one kind that do not compute the same.
    """
    names = _renamed(model)
    if not names:
        return _bind_anew(model)
    functions = list(model.functions.values())
    bodies: list[ir.Graph | ir.Function] = [model.graph, *functions]
    for node in (node for body in bodies for node in body.all_nodes()):
        if node.op_identifier() in names:
            node.op_type = names[node.op_identifier()]
            node.domain, node.overload = training_form.DOMAIN, ""
    for imports in (model.opset_imports, *(function.opset_imports for function in functions)):
        imports.setdefault(training_form.DOMAIN, training_form.VERSION)
    model.functions.clear()
    for function in functions:
        if function.identifier() in names:
            function.name = names[function.identifier()]
            function.domain, function.overload = training_form.DOMAIN, ""
        _add(function, model)
    _bind_anew(model)
    return True


def _renamed(model: ir.Model) -> _Names:
    """Return the names of the training form for the functions that have others."""
    names: _Names = {}
    for identifier, function in model.functions.items():
        if not training_form.is_sync_function(function):
            continue
        callees = {node.op_identifier() for node in function} & model.functions.keys()
        reduces = [key for key in callees if _is_all_reduce(model.functions[key])]
        if len(reduces) == 1:
            names[identifier] = training_form.OP_TYPE
            names[reduces[0]] = training_form.ALL_REDUCE
    return {key: name for key, name in names.items() if key != (training_form.DOMAIN, name, "")}


def _is_all_reduce(function: ir.Function) -> bool:
    (*nodes,) = function
    return [node.op_type for node in nodes] == ["Identity"] and len(function.inputs) == 1


def _add(function: ir.Function, model: ir.Model) -> None:
    there = model.functions.get(function.identifier())
    if there is None:
        model.functions[function.identifier()] = function
    elif ir.to_proto(there) != ir.to_proto(function):
        raise ConversionError(
            f"the model joins training forms whose functions '{function.domain}::{function.name}' "
            "differ; convert both with one version and opset, then join them"
        )


def _bind_anew(model: ir.Model) -> bool:
    """Bind moving statistics to their next values, as the nodes say it, where names are stale."""
    said = training_info.update_bindings(model)
    names = graphs.used_names(model) | training_info.algorithm_names(model) if said else set()
    kept = {key: value for key, value in said.items() if key in names and value in names}
    if kept == said:
        return False
    training_info.set_update_bindings(model, {**kept, **_bindings(model)})
    return True


def _bindings(model: ir.Model) -> dict[str, str]:
    bindings: dict[str, str] = {}
    roots: dict[ir.Value, str] = {}
    returned = set(model.graph.outputs)
    for node in (node for node in model.graph if _has_state(node)):
        for moving, output in zip(node.inputs[3:5], node.outputs[1:3], strict=False):
            if moving is None:
                continue
            roots[output] = roots.get(moving, str(moving.name))
            if output in returned:
                bindings[roots[output]] = str(output.name)
    return bindings


def _has_state(node: ir.Node) -> bool:
    return training_form.is_sync_batchnorm(node) or provenance.read(node) is not None
