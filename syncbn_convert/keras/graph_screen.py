"""The graphs of a SavedModel, judged operator by operator before anything of it is loaded.

Loading runs initializers of resources and functions that restore state, and converting runs the
signature; so whatever Python could call from the folder has to compute and do nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from syncbn_convert.keras.config_screen import TRUST

_STATEFUL = re.compile(
    r"(Stateful)?PartitionedCall|VarHandleOp|VarIsInitializedOp|VariableShape|DisableCopyOnRead"
    r"|\w*VariableOp|If|While|Case|Resource(Gather|Scatter|Apply|SparseApply|StridedSlice)\w*"
    r"|Random\w+|Stateful\w+|Stateless\w+|Multinomial|ParameterizedTruncatedNormal|TruncatedNormal"
    r"|NonDeterministicInts|Rng\w+|\w*SeedGenerator|\w+CandidateSampler|SampleDistortedBounding\w+"
    r"|TensorArray\w*|Stack\w*|Empty|GuaranteeConst|DeviceIndex|CheckNumerics\w*|Assert"
    r"|Cudnn\w+|(Anonymous)?(Mutable)?(Dense)?HashTable\w*|LookupTable\w+|InitializeTableV2"
    r"|Variable(V2)?|TemporaryVariable|DestroyResourceOp|DeepCopy|TPUOrdinalSelector"
)
"""Operators with a state that stays within the process."""
_REACHING_OUT = re.compile(
    r"\w*(File|Dataset|Reader|PyFunc|Summary|Tpu|TPU|Xla|Rpc|Socket|Restore|Save)\w*|Debug\w+"
)
"""Operators without one that read files, call Python or leave the process."""
_SAVER = frozenset(["SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename", "Save"]) | {
    "SaveSlices",
    "Restore",
    "RestoreSlice",
}
_REACHES_OUT = "may reach files, processes or the network"
_HARMLESS = frozenset(["ShardedFilename", "Print"])
_INIT_SIGNATURE, _MAIN_OPS = "__saved_model_init_op", ("saved_model_main_op", "legacy_init_op")


def fault(saved: Any) -> str:
    """Return which operator of a `SavedModel` may not run, where, and what to do; empty if none.

    In the graph of a newer file nothing runs but what its functions are, and its saver is not
    used; in the graph of an older one only what is served, restored or initialized runs.
    """
    for meta in saved.meta_graphs:
        functions = {f.signature.name: f for f in meta.graph_def.library.function}
        if meta.HasField("object_graph_def") and len(saved.meta_graphs) == 1:
            roots: Iterable[str] = meta.object_graph_def.concrete_functions
        else:
            roots = (name for node in meta.graph_def.node for name in _called(node, functions))
            if found := _graph_fault(meta, functions):
                return found
        for name in _reached(roots, meta.graph_def.library, functions):
            for node in functions[name].node_def:
                if what := _node_fault(node, functions):
                    return _message(node, f"function '{name}'", what)
        for name, function in functions.items():
            for node in function.node_def:
                if node.op not in _SAVER and (what := _node_fault(node, functions)):
                    return _message(node, f"function '{name}'", what)
    return ""


def _graph_fault(meta: Any, functions: Mapping[str, Any]) -> str:
    """Return what is wrong with the graph of an older file."""
    running = _running(meta)
    for node in meta.graph_def.node:
        if node.op in _SAVER and (node.op in ("RestoreV2",) or node.name not in running):
            continue
        if what := _node_fault(node, functions):
            return _message(node, "the graph", what)
    return ""


def _running(meta: Any) -> set[str]:
    """Return the names of the nodes that loading or serving an older file runs."""
    nodes = {node.name: node for node in meta.graph_def.node}
    pending = [meta.saver_def.restore_op_name]
    for name, signature in meta.signature_def.items():
        pending += [info.name for info in signature.outputs.values()]
        if name == _INIT_SIGNATURE:
            pending += [info.name for info in signature.inputs.values()]
    for name in _MAIN_OPS:
        if name in meta.collection_def:
            pending += meta.collection_def[name].node_list.value
    reached: set[str] = set()
    while pending:
        name = pending.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in reached:
            reached.add(name)
            pending += nodes[name].input
    return reached


def _reached(roots: Iterable[str], library: Any, functions: Mapping[str, Any]) -> Iterator[str]:
    """Yield the functions that are called from `roots`, each once; those of gradients, too."""
    gradients: dict[str, list[str]] = {}
    for entry in library.gradient:
        gradients.setdefault(entry.function_name, []).append(entry.gradient_func)
    pending, seen = list(roots), set()
    while pending:
        name = pending.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        yield name
        pending += gradients.get(name, ())
        for node in functions[name].node_def:
            pending += _called(node, functions)


def _called(node: Any, functions: Mapping[str, Any]) -> Iterator[str]:
    if node.op in functions:
        yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _node_fault(node: Any, functions: Mapping[str, Any]) -> str:
    from tensorflow.python.framework import op_def_registry

    if node.op in functions or node.op in _HARMLESS:
        return ""
    if node.op == "PrintV2":
        stream = node.attr["output_stream"].s
        return _REACHES_OUT if stream.startswith(b"file:") else ""
    known = op_def_registry.get(node.op)
    if known is None:
        return "is none of TensorFlow"
    if known.is_stateful:
        return "" if _STATEFUL.fullmatch(node.op) else _REACHES_OUT
    return _REACHES_OUT if _REACHING_OUT.fullmatch(node.op) else ""


def _message(node: Any, place: str, what: str) -> str:
    return (
        f"operator {node.op} ('{node.name}') in {place} {what}; export the model without it, or "
        f"pass {TRUST} if you trust whoever made it"
    )
