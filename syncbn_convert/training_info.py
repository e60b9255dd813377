"""`ModelProto.training_info` for `onnx_ir.Model`, which has no field for it.

The protobufs travel in `Model.meta` as bytes: `model_file` puts them there on reading and back into
the protobuf on writing.
"""

from __future__ import annotations

from collections.abc import Mapping

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
