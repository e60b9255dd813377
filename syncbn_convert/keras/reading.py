"""The door through which a model of any kind comes in: ONNX, Keras or TensorFlow."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from syncbn_convert.errors import UsageError
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.keras import sources


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read and check a model file, of ONNX or of Keras; see `model_file.load_model`.

    Raises:
        SyncBNError: as `model_file.load_model` or `sources.read`.
    """
    if sources.is_foreign(path):
        return sources.import_model(path)
    return model_file.load_model(path)


def map_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read and check a model file, of ONNX or of Keras; see `model_file.map_model`.

    Raises:
        SyncBNError: as `model_file.load_model` or `sources.read`.
    """
    if sources.is_foreign(path):
        return sources.import_model(path)
    return model_file.map_model(path)


def as_model(model: ModelLike) -> ir.Model:
    """Return a model that can be changed without changing the argument.

    Args:
        model: What `model_file.as_model` takes, or a `keras.Model` or the path of one.

    Raises:
        SyncBNError: as `model_file.as_model` or `sources.read`.
    """
    if sources.is_foreign(model):
        return sources.import_model(model)
    if not isinstance(model, str | os.PathLike | onnx.ModelProto | ir.Model):
        raise UsageError(
            "a model is a path, an onnx.ModelProto, an onnx_ir.Model or a keras.Model, not "
            f"{type(model).__name__}"
        )
    return model_file.as_model(model)


def as_file(model: ModelLike, path: Path) -> Path:
    """Return the path of an ONNX file that holds `model`: its own, else `path`, which is written.

    Raises:
        SyncBNError: as `as_model`, or if the file cannot be written.
    """
    if isinstance(model, str | os.PathLike) and not sources.is_foreign(model):
        return Path(model)
    model_file.write_model(as_model(model), path)
    return path
