"""Names of the files that hold the external data of a model."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from syncbn_convert.files import wire_format


def data_file(model: Path) -> Path:
    """Return the path of the external data file that belongs to a model file."""
    return model.with_name(f"{model.name}.data")


def of_model(model: Path) -> set[str]:
    """Return the names of data files that are a model file's own and that it refers to.

    Its own are `data_file` and those that `free` makes of it.
    """
    own = re.compile(rf"{re.escape(model.name)}(\.\d+)?\.data")
    with os.scandir(model.parent) as entries:
        there = {entry.name for entry in entries if own.fullmatch(entry.name)}
    return there & _locations(model) if there else set()


def total_bytes(model: Path) -> int:
    """Return the size of a model file and of the data files that it refers to."""
    files = [model, *(model.with_name(name) for name in _locations(model))]
    return sum(file.stat().st_size for file in files if file.is_file())


def beside(model: Path, other: Path) -> set[str]:
    """Return the names of data files that a model refers to, if `other` is in the same folder."""
    same = os.path.realpath(model.parent) == os.path.realpath(other.parent)
    return _locations(model) if same else set()


def free(model: Path, used: Iterable[str]) -> str:
    """Return a name for data of a model: of `data_file`, else with the next number.

    Args:
        model: The model file.
        used: Names that are in use; files of other names may be overwritten.
    """
    taken = set(used)
    plain = data_file(model).name
    if plain not in taken and not any(_number(model, name) for name in taken):
        return plain
    first = 1 + max((_number(model, name) for name in taken), default=0)
    numbered = (f"{model.name}.{number}.data" for number in itertools.count(first))
    return next(name for name in numbered if not os.path.lexists(model.with_name(name)))


def _number(model: Path, name: str) -> int:
    found = re.fullmatch(rf"{re.escape(model.name)}\.(\d{{1,9}})\.data", name)
    return int(found[1]) if found else 0


def _locations(model: Path) -> set[str]:
    """Return the files where a model file, if there is one, keeps weights."""
    if not model.is_file():
        return set()
    try:
        proto = onnx.ModelProto.FromString(wire_format.read_without_weights(model))
    except (OSError, DecodeError, ValueError):
        return set()
    nodes = [node for function in proto.functions for node in function.node]
    graphs = [proto.graph]
    for training in proto.training_info:
        graphs += [training.initialization, training.algorithm]
    tensors = [*_of_nodes(nodes), *(tensor for graph in graphs for tensor in _of_graph(graph))]
    return {
        os.path.normpath(entry.value)
        for tensor in tensors
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)
