"""Bodies of model-local functions in the place of their calls."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph import graphs


def inline(model: ir.Model, callees: Collection[ir.OperatorIdentifier]) -> None:
    """Put the bodies of functions in the place of their calls, in place.

    Raises:
        ConversionError: naming a function that is written in another opset than the model.
    """
    for identifier in callees:
        function = model.functions[identifier]
        if not fits(function, model):
            domain, name, _ = identifier
            raise ConversionError(
                f"function '{domain}::{name}' is written in another opset than the model and "
                "cannot be inlined; export the model again in one opset"
            )
        for domain in function.opset_imports:
            if domain in model.opset_imports:
                function.opset_imports[domain] = model.opset_imports[domain]
    _complete(model, callees)
    InlinePass(criteria=lambda function: function.identifier() in callees)(model)


def _complete(model: ir.Model, callees: Collection[ir.OperatorIdentifier]) -> None:
    """Let calls have as many outputs as the functions, as onnx_ir wants it."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (node for body in bodies for node in body.all_nodes()):
        if node.op_identifier() in callees:
            function = model.functions[node.op_identifier()]
            node.resize_outputs(max(len(node.outputs), len(function.outputs)))


def fits(function: ir.Function, model: ir.Model) -> bool:
    """Whether what a function says means the same in the model's opsets."""
    return all(
        model.opset_imports.get(domain, version) == version
        or (
            domain in graphs.STANDARD_DOMAINS
            and _is_same(function, version, model.opset_imports[domain])
        )
        for domain, version in function.opset_imports.items()
    )


def _is_same(function: ir.Function, one: int, two: int) -> bool:
    operators = {
        node.op_type for node in function.all_nodes() if node.domain in graphs.STANDARD_DOMAINS
    }
    return all(_since(op_type, one) == _since(op_type, two) for op_type in operators)


def _since(op_type: str, opset: int) -> int:
    try:
        return onnx.defs.get_schema(op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        return 0
