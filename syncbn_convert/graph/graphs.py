"""Walking and naming in a model: main graph, control-flow bodies, model-local functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, MutableSequence

import onnx_ir as ir

STANDARD_DOMAINS = ("", "ai.onnx")
FIRST_OPSET_OF_NUMPY_BROADCASTING = 7


def clone(model: ir.Model) -> ir.Model:
    """Return a copy that can be changed, with what `meta` keeps beside the model."""
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def opset_version(model: ir.Model) -> int:
    """Return the version of the standard operator set that the main graph imports; 0 if none."""
    imports = model.opset_imports
    return next((imports[domain] for domain in STANDARD_DOMAINS if domain in imports), 0)


def opset_version_of(node: ir.Node, model: ir.Model) -> int:
    """Return the version of the standard operator set that a node of any scope is written in."""
    graph = node.graph
    for function in model.functions.values():
        if any(graph is own for own in (function.graph, *function.subgraphs())):
            return function.opset_imports.get("", opset_version(model))
    return opset_version(model)


def reads_type_only(node: ir.Node, index: int) -> bool:
    """Whether a node looks at nothing of an input but its type and shape."""
    if node.domain not in STANDARD_DOMAINS:
        return False
    return node.op_type in ("Shape", "Size") or (node.op_type == "CastLike" and index == 1)


def readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read numbers of `value`, as often as they read it."""
    return [use.node for use in value.uses() if not reads_type_only(use.node, use.idx)]


def walk(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.Function | None]]:
    """Yield every node, its location and the function it is in.

    Main graph first, bodies where they stand, then functions. The location is empty in the main
    graph, else such as `If 'choice' then_branch` or `function domain::Name`.
    """
    for node, location in _walk_nodes(model.graph, ""):
        yield node, location, None
    for function in model.functions.values():
        for node, location in _walk_nodes(function, f"function {function.domain}::{function.name}"):
            yield node, location, function


def functions_with(
    model: ir.Model, wanted: Callable[[ir.Node, ir.Function], bool]
) -> set[ir.OperatorIdentifier]:
    """Return the functions that hold a wanted node, or call one that does."""
    found: set[ir.OperatorIdentifier] = set()
    while True:
        more = {
            identifier
            for identifier, function in model.functions.items()
            if any(
                node.op_identifier() in found or wanted(node, function)
                for node in function.all_nodes()
            )
        }
        if more <= found:
            return found
        found |= more


def _walk_nodes(nodes: Iterable[ir.Node], location: str) -> Iterator[tuple[ir.Node, str]]:
    for node in nodes:
        yield node, location
        for name, body in bodies(node):
            here = f"{node.op_type} '{label(node)}' {name}"
            yield from _walk_nodes(body, f"{location} / {here}" if location else here)


def bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Yield the control-flow bodies of a node with the names of their attributes."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((name, graph) for graph in attribute.as_graphs())


def label(node: ir.Node) -> str:
    """Return the node's name, or `OpType(first output)` where it has none."""
    if node.name:
        return node.name
    outputs = [output.name for output in node.outputs if output.name]
    return f"{node.op_type}({outputs[0] if outputs else ''})"


def used_names(model: ir.Model) -> set[str]:
    """Return every value name of the main graph and its bodies."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(value.name for value in graph.inputs if value.name)
        names.update(graph.initializers)
        for node in graph:
            names.update(value.name for value in node.outputs if value.name)
    return names


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or `wanted_1`, `wanted_2` ..., and add it to `taken`."""
    name = next(
        candidate
        for candidate in itertools.chain(
            [wanted], (f"{wanted}_{number}" for number in itertools.count(1))
        )
        if candidate not in taken
    )
    taken.add(name)
    return name


class Names:
    """The names of a model's values and nodes, from which new ones keep apart.

    Args:
        model: Read once; names that are made later by others are not known.
    """

    def __init__(self, model: ir.Model) -> None:
        self.values = used_names(model)
        self.nodes = {node.name for node, _, _ in walk(model) if node.name}

    def value(self, wanted: str) -> str:
        """Return a name for a new value."""
        return unique_name(wanted, self.values)

    def node(self, wanted: str) -> str:
        """Return a name for a new node."""
        return unique_name(wanted, self.nodes)

    def after_operator(self, node: ir.Node, scope: str) -> None:
        """Name a new node and its outputs `scope/operator`; outputs that have a name keep it."""
        wanted = f"{scope}/{node.op_type}"
        node.name = self.node(wanted)
        for output in node.outputs:
            output.name = output.name or self.value(wanted)


def remove_from(container: MutableSequence[ir.Value], values: Iterable[ir.Value]) -> None:
    """Remove `values` from a graph's inputs or outputs, by identity."""
    dropped, listed = set(values), container[:]
    found = itertools.compress(range(len(listed)), map(dropped.__contains__, listed))
    for index in reversed(list(found)):
        container.pop(index)


def remove_dead_producers(values: Iterable[ir.Value | None]) -> None:
    """Remove the nodes that made `values`, and theirs in turn, as far as nothing uses them."""
    pending = [value for value in values if value is not None]
    while pending:
        node = pending.pop().producer()
        if node is None or node.graph is None:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        pending.extend(value for value in node.inputs if value is not None)
        node.graph.remove(node, safe=True)
