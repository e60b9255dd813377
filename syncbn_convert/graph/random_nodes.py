"""Nodes that draw random numbers, and what depends on them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from syncbn_convert.graph import constants, graphs

_DRAWING = frozenset(
    [
        ("", "Bernoulli"),
        ("", "Multinomial"),
        ("", "RandomNormal"),
        ("", "RandomNormalLike"),
        ("", "RandomUniform"),
        ("", "RandomUniformLike"),
        ("com.microsoft", "RandomNormal"),
        ("com.microsoft", "Sampling"),
    ]
)
_DROPPING = frozenset([("", "Dropout"), ("com.microsoft", "BiasDropout")])
_BITMASK = ("com.microsoft", "BitmaskBiasDropout"), ("com.microsoft", "BitmaskDropout")
_SHAPES_ALONE = ("Shape", "Size")
_FIRST_OPSET_WITHOUT_IS_TEST = 7
_FIRST_OPSET_WITH_MODE = 12
_NAMED = 3

_Function = tuple[str, str, str]


def kind(node: ir.Node) -> tuple[str, str]:
    """Return domain and operator, the standard domain as an empty text."""
    return "" if node.domain in graphs.STANDARD_DOMAINS else node.domain, node.op_type


def training_dropout(node: ir.Node, opset: int, model: ir.Model) -> bool:
    """Whether a node is a Dropout that drops, or that may, as its caller says."""
    if kind(node) not in (*_DROPPING, *_BITMASK):
        return False
    if node.domain in graphs.STANDARD_DOMAINS and opset < _FIRST_OPSET_WITH_MODE:
        tests = node.attributes.get_int("is_test", 0) != 0
        return opset < _FIRST_OPSET_WITHOUT_IS_TEST and not tests
    index = mode_input(node)
    mode = node.inputs[index] if index < len(node.inputs) else None
    if mode is None:
        return False
    tensor = constants.constant_tensor(mode, model)
    return tensor is None or bool(tensor.numpy().any())


def mode_input(node: ir.Node) -> int:
    """Return the index of the input that says whether a Dropout of opset 12 or later drops."""
    return 4 if node.op_type in ("BiasDropout", "BitmaskBiasDropout") else 2


def find(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.Function | None]]:
    """Yield every node that draws random numbers, its location and the function it is in."""
    for node, location, function in graphs.walk(model):
        if draws(node, function, model):
            yield node, location, function


def draws(node: ir.Node, function: ir.Function | None, model: ir.Model) -> bool:
    """Whether a node of the main graph, or of a function, draws random numbers itself."""
    main = graphs.opset_version(model)
    opset = main if function is None else function.opset_imports.get("", main)
    return kind(node) in _DRAWING or training_dropout(node, opset, model)


def note(model: ir.Model) -> tuple[str, ...]:
    """Return a note that names what draws random numbers; nothing where nothing does."""
    found = [f"'{graphs.label(node)}' ({node.op_type})" for node, _, _ in find(model)]
    if not found:
        return ()
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    subject, verb = ("node", "draws") if len(found) == 1 else ("nodes", "draw")
    return (
        f"{subject} {', '.join(found[:_NAMED])}{more} {verb} random numbers, so that no two runs "
        "are alike",
    )


def random_outputs(model: ir.Model) -> dict[str, str]:
    """Return the graph outputs that depend on random numbers, each with a node that draws them."""
    functions = _drawing_functions(model)
    tainted: dict[ir.Value, str] = {}
    for node in model.graph:
        culprit = _culprit(node, model, functions, tainted)
        if culprit:
            tainted.update(dict.fromkeys(node.outputs, culprit))
    outputs = ((value, tainted.get(value)) for value in model.graph.outputs)
    return {str(value.name): culprit for value, culprit in outputs if culprit}


def _drawing_functions(model: ir.Model) -> set[_Function]:
    found: set[_Function] = set()
    while True:
        more = {
            identifier
            for identifier, function in model.functions.items()
            if any(
                node.op_identifier() in found or draws(node, function, model)
                for node in function.all_nodes()
            )
        }
        if more == found:
            return found
        found = more


def _culprit(
    node: ir.Node, model: ir.Model, functions: set[_Function], tainted: dict[ir.Value, str]
) -> str:
    inner = [within for _, body in graphs.bodies(node) for within in body.all_nodes()]
    for drawing in (node, *inner):
        if drawing.op_identifier() in functions or draws(drawing, None, model):
            return graphs.label(drawing)
    if node.op_type in _SHAPES_ALONE and node.domain in graphs.STANDARD_DOMAINS:
        return ""
    read = (value for reader in (node, *inner) for value in reader.inputs if value is not None)
    return next((tainted[value] for value in read if value in tainted), "")
