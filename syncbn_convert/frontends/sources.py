"""Files and objects of Keras, to `onnx_ir.Model`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.frontends import files
from syncbn_convert.frontends.libraries import (
    TF_KERAS,
    library_of,
    load_library,
    without_noise,
)
from syncbn_convert.frontends.messages import first_line

if TYPE_CHECKING:
    from syncbn_convert.frontends.tracing import Traced


def is_foreign(model: object) -> bool:
    """Whether `model` is a Keras model or the path of one, and not of ONNX."""
    if isinstance(model, str | os.PathLike):
        return files.is_keras_path(Path(model))
    return library_of(model) is not None


def import_model(source: Any) -> ir.Model:
    """Return the inference function of a Keras model, each BatchNormalization one node.

    Args:
        source: A model of Keras 3 or tf_keras, or the path of a `.keras` or `.h5` file or a
            SavedModel folder.

    Raises:
        UsageError: if TensorFlow or tf2onnx is not installed, or Keras has another backend.
        ModelFileError: if the file cannot be read.
        ConversionError: if the model has an operator that tf2onnx does not know.
    """
    with without_noise():
        name, trace = _tracer(source)
        from syncbn_convert.frontends import binding

        try:
            return binding.bind(trace())
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConversionError(
                f"model '{name}': cannot be exported: {first_line(error)}; give a model that has "
                "been built, of layers that tf2onnx knows"
            ) from error


def _tracer(source: Any) -> tuple[str, Callable[[], Traced]]:
    """Return the name of a model and what traces it."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if files.is_saved_model(path) and not files.has_keras_metadata(path):
            load_library(TF_KERAS)
            from syncbn_convert.frontends import saved_model, tracing

            function = saved_model.load_signature(path)
            return function.name, lambda: tracing.trace_function(function, {})
        model, library = files.load(path)
    else:
        model, library = source, load_library(str(library_of(source)))
    from syncbn_convert.frontends import tracing

    return model.name, lambda: tracing.trace(model, library)
