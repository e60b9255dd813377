"""Files and objects of Keras, to `onnx_ir.Model`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.frontends import files
from syncbn_convert.frontends.libraries import library_of, load_library, without_noise
from syncbn_convert.frontends.messages import first_line


def is_foreign(model: object) -> bool:
    """Whether `model` is a Keras model or the path of one, and not of ONNX."""
    if isinstance(model, str | os.PathLike):
        return files.is_keras_path(Path(model))
    return library_of(model) is not None


def import_model(source: Any) -> ir.Model:
    """Return the inference function of a Keras model, each BatchNormalization one node.

    Args:
        source: A model of Keras 3 or tf_keras, or the path of a `.keras` or `.h5` file.

    Raises:
        UsageError: if TensorFlow or tf2onnx is not installed, or Keras has another backend.
        ModelFileError: if the file cannot be read.
        ConversionError: if the model has an operator that tf2onnx does not know.
    """
    with without_noise():
        if isinstance(source, str | os.PathLike):
            model, library = files.load(Path(source))
        else:
            model, library = source, load_library(str(library_of(source)))
        from syncbn_convert.frontends import binding, tracing

        try:
            return binding.bind(tracing.trace(model, library))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConversionError(
                f"model '{model.name}': cannot be exported: {first_line(error)}; give a model "
                "that has been built, of layers that tf2onnx knows"
            ) from error
