"""What runtimes take and onnx's checker does not: put in order, or hidden from the checker."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator

import onnx

_UNKNOWN_DOMAIN = "syncbn_convert.unknown"
_STANDARD_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"})
_FIRST_IR_WITH_CONSTANT_INITIALIZERS = 4

_Body = onnx.GraphProto | onnx.FunctionProto
_Holder = onnx.ModelProto | onnx.FunctionProto


def put_in_order(proto: onnx.ModelProto) -> bool:
    """Sort the nodes of all graphs, and call the domain 'ai.onnx' by its other name, ''.

    Returns:
        Whether anything was not so before.
    """
    changed = False
    for holder, body in holders(proto):
        changed |= _name_default_domain(holder)
        for graph in bodies(body):
            for node in graph.node:
                if node.domain == "ai.onnx":
                    node.domain = ""
                    changed = True
            changed |= _sort(graph)
    return changed


def please_checker(proto: onnx.ModelProto) -> None:
    """Change a copy so that the checker sees only what is broken.

    Graphs get names, operators that onnx does not know a domain, domains an import; initializers
    of old models need be no inputs.
    """
    version = proto.ir_version
    proto.ir_version = (
        max(version, _FIRST_IR_WITH_CONSTANT_INITIALIZERS) if version > 0 else version
    )
    for holder, body in holders(proto):
        domains = {entry.domain for entry in holder.opset_import}
        for graph in bodies(body):
            if not graph.name:
                graph.name = "graph"
            for node in graph.node:
                if _is_unknown(node):
                    node.domain = _UNKNOWN_DOMAIN
                if node.domain not in domains:
                    domains.add(node.domain)
                    holder.opset_import.add(domain=node.domain, version=1)


@contextlib.contextmanager
def missing_shapes_filled(graph: onnx.GraphProto) -> Iterator[None]:
    """Let inputs and outputs that lack type or shape have one for a while."""
    infos = [*graph.input, *graph.output]
    before = [(info, onnx.TypeProto.FromString(info.type.SerializeToString())) for info in infos]
    typed = {info.name for info in graph.output if info.HasField("type")}
    outputs = {info.name for info in graph.output}
    for info in infos:
        if not info.HasField("type") and info.name in outputs:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    try:
        yield
    finally:
        for info, kind in before:
            info.type.CopyFrom(kind)
            if info.name in outputs - typed:
                info.ClearField("type")


def holders(proto: onnx.ModelProto) -> Iterator[tuple[_Holder, _Body]]:
    """Yield a model with its graph, and each function, which says its opsets itself."""
    yield proto, proto.graph
    for function in proto.functions:
        yield function, function


def bodies(body: _Body) -> Iterator[_Body]:
    """Yield a graph or function and the bodies of its nodes."""
    yield body
    for node in body.node:
        for graph in _graphs_of(node):
            yield from bodies(graph)


def _graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _name_default_domain(holder: _Holder) -> bool:
    imports = {entry.domain: entry.version for entry in holder.opset_import}
    if "ai.onnx" not in imports:
        return False
    kept = [
        entry for entry in holder.opset_import if entry.domain != "ai.onnx" or "" not in imports
    ]
    for entry in kept:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    del holder.opset_import[:]
    holder.opset_import.extend(kept)
    return True


def _is_unknown(node: onnx.NodeProto) -> bool:
    """Whether no version of a standard domain knows an operator that claims to be of it."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return (
        bool(node.op_type)
        and domain in _STANDARD_DOMAINS
        and not onnx.defs.has(node.op_type, domain)
    )


def _sort(graph: _Body) -> bool:
    """Sort nodes so that each stands behind what it reads, if some do not; return whether."""
    nodes = list(graph.node)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in _read_names(node) if name in makers} for node in nodes]
    if all(max(needed, default=-1) < at for at, needed in enumerate(needs)):
        return False
    order = _stable_order(needs)
    if len(order) == len(nodes):
        del graph.node[:]
        graph.node.extend(nodes[at] for at in order)
    return True


def _stable_order(needs: list[set[int]]) -> list[int]:
    """Return the order that is nearest to the given one; shorter than that if there is a cycle."""
    readers: list[list[int]] = [[] for _ in needs]
    for at, needed in enumerate(needs):
        for maker in needed:
            readers[maker].append(at)
    missing = [len(needed) for needed in needs]
    ready = [at for at, count in enumerate(missing) if not count]
    order = []
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for reader in readers[at]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return order


def _read_names(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, and what its bodies read from outside."""
    names = set(node.input)
    for graph in _graphs_of(node):
        inside = {info.name for info in graph.input} | {t.name for t in graph.initializer}
        inside.update(name for child in graph.node for name in child.output)
        read = {name for child in graph.node for name in _read_names(child)}
        names |= (read | {info.name for info in graph.output}) - inside
    return names
