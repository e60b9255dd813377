"""Models that a runtime would refuse, or feed nothing to, for how they are written alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from syncbn_convert.files import model_file
from syncbn_convert.graph import graphs
from syncbn_convert.verification.interface import read_interface
from syncbn_convert.verification.model import ModelFile

_TAKE_EMPTY = ("Resize", "Upsample", "Pad", "Loop", "If", "Scan", "ConstantOfShape", "Reshape")
"""Operators with inputs for which an empty tensor stands for none, or is a shape."""


def loadable(model: ModelFile, folder: Path) -> tuple[ModelFile, list[str]]:
    """Return a model that can be loaded and run on samples, and notes about what was changed.

    1. Attributes that its opset does not have, and that say what it means anyway, are left out.
    2. Static sizes of 0 are left open, unless weights have that size too.

    Args:
        model: A model that is loadable already is returned as it is.
        folder: Where a changed model is written; is made.
    """
    notes = list(model_file.notes_of(model.model))
    content = model.model
    empty = _empty_sizes(content)
    if empty and not _has_empty_weights(content):
        content = graphs.clone(content)
        _open_sizes(content)
        axes = ", ".join(f"'{name}'" for name in empty)
        notes.append(
            f"the static size 0 of {axes} holds no sample: compared with that size left open"
        )
    elif not notes:
        return model, []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / model.path.name
    model_file.write_model(content, path)
    interface = read_interface(content)
    return dataclasses.replace(model, path=path, model=content, interface=interface), notes


def _empty_sizes(model: ir.Model) -> list[str]:
    fed = (value for value in model.graph.inputs if not value.is_initializer())
    return [str(value.name) for value in fed if value.shape is not None and 0 in value.shape]


def _has_empty_weights(model: ir.Model) -> bool:
    return any(
        value.const_value is not None
        and not value.const_value.size
        and any(use.node.op_type not in _TAKE_EMPTY for use in value.uses())
        for value in model.graph.initializers.values()
    )


def _open_sizes(model: ir.Model) -> None:
    for value in _values(model):
        if value.shape is not None and 0 in value.shape and not value.is_initializer():
            value.shape = ir.Shape([None if size == 0 else size for size in value.shape])


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node, _, _ in graphs.walk(model):
        yield from node.outputs
        for _, body in graphs.bodies(node):
            yield from body.inputs
