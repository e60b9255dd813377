"""SavedModel folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.protobuf import saved_model_pb2

from syncbn_convert.doors.nested_text import parse_json
from syncbn_convert.errors import ModelFileError
from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.keras import config_screen, custom, graph_screen
from syncbn_convert.keras.functions import InferenceFunction
from syncbn_convert.keras.keras_weights import UNTRAINED
from syncbn_convert.keras.messages import cause_of

_SERVING = "serving_default"
_GRAPH, _LAYERS = "saved_model.pb", "keras_metadata.pb"
_WEIGHTS = ("variables", "assets", "assets.extra")


def load_signature(path: Path) -> InferenceFunction:
    """Return the function that a SavedModel serves.

    Raises:
        ModelFileError: if the folder cannot be read, serves nothing, or does more than compute.
    """
    copied = contextlib.nullcontext(path) if custom.is_trusted() else screened_copy(path)
    with copied as folder:
        try:
            loaded = tf.saved_model.load(str(folder))
            signatures = dict(loaded.signatures)
        except Exception as error:  # whatever protobuf, files and operators raise
            raise _unreadable(path, cause_of(error)) from error
    if not signatures:
        raise ModelFileError(
            f"{path}: has no signature to serve; save it with model.export(folder)"
        )
    concrete = signatures.get(_SERVING) or next(iter(signatures.values()))
    return InferenceFunction(
        name=path.resolve().name,
        concrete=concrete,
        inputs=(names := _argument_names(concrete)),
        outputs=sorted(concrete.structured_outputs),
        paths={},
        weights={
            id(variable): WeightFacts(untrained=UNTRAINED)
            for variable in concrete.variables
            if not variable.trainable
        },
        keywords=_keywords(concrete, names),
        owner=loaded,
    )


@contextlib.contextmanager
def screened_copy(path: Path, *, needs_layers: bool = False) -> Iterator[Path]:
    """Provide a folder with the graph of a SavedModel, which was judged, and links to its weights.

    What is in the folder besides is not there, and initializers of resources that no signature
    uses are not, either.

    Args:
        path: The SavedModel.
        needs_layers: Whether its layers are to be read, too; all initializers stay then.

    Raises:
        ModelFileError: if the graph cannot be read, or does more than compute.
    """
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((path / _GRAPH).read_bytes())
    except (DecodeError, OSError) as error:
        raise _unreadable(path, cause_of(error)) from error
    if not needs_layers:
        _drop_initializers(saved)
    if fault := graph_screen.fault(saved):
        raise ModelFileError(f"{path}: {fault}")
    with tempfile.TemporaryDirectory(prefix="syncbn-convert-") as name:
        folder = Path(name)
        (folder / _GRAPH).write_bytes(saved.SerializeToString())
        for part in _WEIGHTS:
            if (path / part).is_dir():
                os.symlink((path / part).absolute(), folder / part)
        if needs_layers:
            shutil.copyfile(path / _LAYERS, folder / _LAYERS)
        yield folder


def layers_fault(folder: Path, library: Any, named: Collection[str]) -> str:
    """Return which layer in `keras_metadata.pb` may not come to life; empty if all may.

    Raises:
        ModelFileError: if the metadata cannot be read.
    """
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    screen = config_screen.screen_for(library, named, revives=True)
    try:
        metadata.ParseFromString((folder / _LAYERS).read_bytes())
        configs = [parse_json(node.metadata) for node in metadata.nodes if node.metadata]
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{_LAYERS}: cannot be read ({cause_of(error)}); save the model again"
        ) from error
    return next((fault for config in configs if (fault := screen.fault(config))), "")


def _drop_initializers(saved: Any) -> None:
    """Take out the initializers of resources that no signature uses."""
    for meta in saved.meta_graphs:
        graph = meta.object_graph_def
        signatures = {
            node.bare_concrete_function.concrete_function_name
            for node in graph.nodes
            if node.WhichOneof("kind") == "bare_concrete_function"
        }
        used = {
            bound
            for name in signatures
            if name in graph.concrete_functions
            for bound in graph.concrete_functions[name].bound_inputs
        }
        for number, node in enumerate(graph.nodes):
            if node.WhichOneof("kind") == "resource" and number not in used:
                kept = [child for child in node.children if child.local_name != "_initialize"]
                del node.children[:]
                node.children.extend(kept)


def _unreadable(path: Path, cause: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: cannot be read by TensorFlow {tf.__version__}: {cause}; save the model again"
    )


def _argument_names(concrete: Any) -> list[str]:
    """Return the names of arguments in the order of the graph's placeholders."""
    captured = {id(placeholder) for _, placeholder in concrete.graph.captures}
    return [value.op.name for value in concrete.inputs if id(value) not in captured]


def _keywords(concrete: Any, names: list[str]) -> list[str]:
    """Return the keywords of a signature's arguments, which placeholders are named after."""
    specs = concrete.structured_input_signature[1]
    keywords = {spec.name: keyword for keyword, spec in specs.items()}
    return [keywords.get(name, name) for name in names]
