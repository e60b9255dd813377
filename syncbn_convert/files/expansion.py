"""How many nodes a model stands for, where functions call functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

MOST_NODES = 1 << 18
"""That functions may add by being called: inference and inlining look at each call anew."""

_Key = tuple[str, str]


def fault(model: onnx.ModelProto) -> str:
    """Say why a model is too large when its functions are expanded; empty if it is not.

    Functions that call themselves, which the checker refuses, count as too large, too.
    """
    bodies: dict[_Key, onnx.FunctionProto] = {}
    for function in model.functions:
        bodies[(function.domain, function.name)] = function
    if not bodies:
        return ""
    called = {key: list(_calls(function.node, bodies)) for key, function in bodies.items()}
    own = {key: len(function.node) for key, function in bodies.items()}
    sizes: dict[_Key, int] = {}
    for key in bodies:
        _measure(key, called, own, sizes)
    total = sum(sizes[key] for key in _calls(model.graph.node, bodies))
    if total <= MOST_NODES:
        return ""
    name = max(sizes, key=sizes.__getitem__)[1]
    return (
        f"its functions call one another so often that they stand for more than {MOST_NODES} nodes "
        f"('{name}' alone for {min(sizes[key] for key in sizes if key[1] == name)}); export it "
        "without functions"
    )


def _measure(
    first: _Key, called: Mapping[_Key, list[_Key]], own: Mapping[_Key, int], sizes: dict[_Key, int]
) -> None:
    """Put the sizes of a function and of all that it calls into `sizes`, callees first."""
    pending = [first]
    open_calls: set[_Key] = set()
    while pending:
        key = pending[-1]
        missing = [other for other in called[key] if other not in sizes]
        if key in sizes or not missing or key in open_calls:
            recursive = bool(missing) and key not in sizes
            inner = MOST_NODES + 1 if recursive else sum(sizes[o] for o in called[key])
            sizes.setdefault(key, min(own[key] + inner, _CEILING))
            pending.pop()
        else:
            open_calls.add(key)
            pending += dict.fromkeys(missing)


_CEILING = 1 << 62


def _calls(
    nodes: Iterable[onnx.NodeProto], bodies: Mapping[_Key, onnx.FunctionProto]
) -> Iterator[_Key]:
    for node in nodes:
        key = (node.domain, node.op_type)
        if key in bodies:
            yield key
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _calls(graph.node, bodies)
