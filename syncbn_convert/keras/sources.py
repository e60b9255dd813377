"""Files and objects of Keras, to `onnx_ir.Model`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from syncbn_convert.errors import ConversionError, UsageError
from syncbn_convert.keras import files
from syncbn_convert.keras.libraries import TF_KERAS, library_of, load_library, without_noise
from syncbn_convert.keras.messages import cause_of

if TYPE_CHECKING:
    from syncbn_convert.keras.functions import InferenceFunction
    from syncbn_convert.keras.tracing import Traced


def is_foreign(model: object) -> bool:
    """Whether `model` is a Keras model or the path of one, and not of ONNX."""
    if isinstance(model, str | os.PathLike):
        return files.is_keras_path(Path(model))
    return library_of(model) is not None


def require_foreign(model: object) -> None:
    """Refuse what is no model of Keras or TensorFlow.

    Raises:
        UsageError: naming it.
    """
    if not is_foreign(model):
        shown = model if isinstance(model, str | os.PathLike) else type(model).__name__
        raise UsageError(f"{shown}: is no model of Keras; give a .keras or .h5 file")


def name_of(model: Any) -> str:
    """Return what messages call a model of Keras or TensorFlow."""
    return str(model) if isinstance(model, str | os.PathLike) else f"model '{model.name}'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model as it was read.

    Attributes:
        model: Its inference function, each BatchNormalization one node.
        framework: What returns its own function, for comparison.
    """

    model: ir.Model
    framework: Callable[[], InferenceFunction]


def import_model(source: Any) -> ir.Model:
    """Return the model of `read` alone."""
    return read(source).model


def read(source: Any) -> Imported:
    """Return the inference function of a model, each BatchNormalization one node.

    Args:
        source: A model of Keras 3 or tf_keras, or the path of a `.keras` or `.h5` file or a
            SavedModel folder.

    Raises:
        UsageError: if TensorFlow or tf2onnx is not installed, or Keras has another backend.
        ModelFileError: if the file cannot be read.
        ConversionError: if the model has an operator that tf2onnx does not know.
    """
    with without_noise():
        name, framework, trace = _open(source)
        from syncbn_convert.keras import binding

        try:
            return Imported(model=binding.bind(trace()), framework=framework)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConversionError(
                f"model '{name}': cannot be exported: {cause_of(error)}; give a model that has "
                "been built, of layers that tf2onnx knows"
            ) from error


def _open(source: Any) -> tuple[str, Callable[[], InferenceFunction], Callable[[], Traced]]:
    """Return the name of a model, its own function, and what traces it."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if files.is_saved_model(path) and not files.has_keras_metadata(path):
            load_library(TF_KERAS)
            from syncbn_convert.keras import saved_model

            function = saved_model.load_signature(path)
            return function.name, lambda: function, lambda: _trace_alone(function)
        model, library = files.load(path)
    else:
        model, library = source, load_library(str(library_of(source)))
    from syncbn_convert.keras import functions, tracing

    signature = functools.cache(lambda: functions.signature_of(model, library))
    return (
        model.name,
        lambda: functions.trace_model(model, signature()),
        lambda: tracing.trace(model, library, signature()),
    )


def _trace_alone(function: InferenceFunction) -> Traced:
    from syncbn_convert.keras.form_layers import FormLayers
    from syncbn_convert.keras.tracing import trace_function

    return trace_function(function, FormLayers())
