"""Keras files and Keras models in memory, to `onnx_ir.Model`."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from syncbn_convert.errors import ConversionError, ModelFileError, UsageError

_SUFFIXES = (".keras", ".h5")
_STDERR = 2


def is_foreign(model: object) -> bool:
    """Whether `model` is a Keras model or the path of one, and not of ONNX."""
    if isinstance(model, str | os.PathLike):
        return Path(model).suffix.lower() in _SUFFIXES
    return any(
        base.__name__ == "Model" and base.__module__.startswith("keras.")
        for base in type(model).__mro__
    )


def import_model(source: Any) -> ir.Model:
    """Return the inference function of a Keras model, each BatchNormalization one node.

    Args:
        source: A `keras.Model` of Keras 3, or the path of a `.keras` or `.h5` file.

    Raises:
        UsageError: if TensorFlow or tf2onnx is not installed, or Keras has another backend.
        ModelFileError: if the file cannot be read.
        ConversionError: if the model has an operator that tf2onnx does not know.
    """
    with _without_noise():
        keras = _libraries()
        model = _load(keras, Path(source)) if isinstance(source, str | os.PathLike) else source
        from syncbn_convert.frontends import binding, tracing

        try:
            return binding.bind(tracing.trace(model))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConversionError(
                f"model '{model.name}': cannot be exported: {_first_line(error)}; give a model "
                "that has been built, of layers that tf2onnx knows"
            ) from error


def _libraries() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        for name in ("tensorflow", "tf2onnx"):
            importlib.import_module(name)
        keras = importlib.import_module("keras")
    except ImportError as error:
        raise UsageError(
            f"a Keras model needs {error.name or 'TensorFlow'}; install it with "
            "pip install 'syncbn-convert[tensorflow]'"
        ) from error
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow to read its "
            "models"
        )
    return keras


def _load(keras: Any, path: Path) -> Any:
    if not path.is_file():
        raise ModelFileError(f"{path}: is no file; give the path of a .keras or .h5 file")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever zip, HDF5, JSON and layers raise
        raise ModelFileError(
            f"{path}: cannot be read by Keras {keras.__version__}: {_first_line(error)}; save the "
            "model again"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".;")


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Keep what TensorFlow writes, from C++ too, away from standard error."""
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryFile() as sink,
        contextlib.ExitStack() as stack,
    ):
        warnings.simplefilter("ignore")
        own = os.dup(_STDERR)
        stack.callback(os.close, own)
        os.dup2(sink.fileno(), _STDERR)
        stack.callback(os.dup2, own, _STDERR)
        yield
