"""`ModelProto.training_info` for `onnx_ir.Model`, which has no field for it.

The protobufs travel in `Model.meta` as bytes: `model_file` puts them there on reading and back into
the protobuf on writing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import onnx_ir as ir

_META_KEY = "syncbn_convert.training_info"


def get(model: ir.Model) -> list[onnx.TrainingInfoProto]:
    """Return copies of the training information that the model carries."""
    return [
        onnx.TrainingInfoProto.FromString(serialized)
        for serialized in model.meta.get(_META_KEY, ())
    ]


def put(model: ir.Model, training_info: list[onnx.TrainingInfoProto]) -> None:
    """Replace the training information that the model carries."""
    if training_info:
        model.meta[_META_KEY] = tuple(
            entry.SerializeToString(deterministic=True) for entry in training_info
        )
    else:
        model.meta.pop(_META_KEY, None)


def update_bindings(model: ir.Model) -> dict[str, str]:
    """Return the initializer -> graph output pairs of the first entry's `update_binding`."""
    entries = get(model)
    return {pair.key: pair.value for pair in entries[0].update_binding} if entries else {}


def set_update_bindings(model: ir.Model, bindings: Mapping[str, str]) -> None:
    """Make `bindings` (initializer -> graph output) the first entry's `update_binding`.

    An entry that says nothing any more is dropped; other entries and other fields stay.
    """
    entries = get(model) or [onnx.TrainingInfoProto()]
    del entries[0].update_binding[:]
    for initializer, output in bindings.items():
        entries[0].update_binding.add(key=initializer, value=output)
    put(model, [entry for entry in entries if entry.ByteSize()])


def algorithm_names(model: ir.Model) -> set[str]:
    """Return the value names that the algorithms make."""
    return {name for entry in get(model) for node in entry.algorithm.node for name in node.output}


def outputs_of(model: ir.Model, describe: Callable[[onnx.NodeProto], str | None]) -> dict[str, str]:
    """Return what `describe` says of the nodes of the algorithms, by the names they make."""
    return {
        name: text
        for entry in get(model)
        for node in entry.algorithm.node
        if (text := describe(node)) is not None
        for name in node.output
    }


def add_to_algorithm(
    model: ir.Model, nodes: Sequence[onnx.NodeProto], output: onnx.ValueInfoProto
) -> None:
    """Add nodes and an output to the first entry's algorithm."""
    entries = get(model) or [onnx.TrainingInfoProto()]
    algorithm = entries[0].algorithm
    algorithm.name = algorithm.name or "algorithm"
    algorithm.node.extend(nodes)
    algorithm.output.append(output)
    put(model, entries)


def remove_from_algorithm(model: ir.Model, belongs: Callable[[onnx.NodeProto], bool]) -> set[str]:
    """Remove nodes from the algorithms, and their outputs; return the names of these outputs."""
    entries = get(model)
    removed: set[str] = set()
    for entry in entries:
        algorithm = entry.algorithm
        gone = {name for node in algorithm.node if belongs(node) for name in node.output}
        if not gone:
            continue
        kept_nodes = [node for node in algorithm.node if not belongs(node)]
        kept_outputs = [info for info in algorithm.output if info.name not in gone]
        removed |= {info.name for info in algorithm.output if info.name in gone}
        del algorithm.node[:], algorithm.output[:]
        algorithm.node.extend(kept_nodes)
        algorithm.output.extend(kept_outputs)
        if not kept_nodes and not kept_outputs:
            entry.ClearField("algorithm")
    if removed:
        put(model, [entry for entry in entries if entry.ByteSize()])
    return removed
