"""Keras 3 and tf_keras: which one, and quietly."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from syncbn_convert.errors import UsageError

KERAS, TF_KERAS = "keras", "tf_keras"
_STDERR = 2
_logger = logging.getLogger(__name__)


def library_of(model: object) -> str | None:
    """Return the name of the library whose model an object is, or None."""
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ == "Model" and package in (KERAS, TF_KERAS):
            return package
    return None


def load_library(name: str) -> Any:
    """Import a library, TensorFlow and tf2onnx.

    Raises:
        UsageError: if one is not installed, or Keras 3 has another backend.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        for needed in ("tensorflow", "tf2onnx"):
            importlib.import_module(needed)
        library = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"a Keras model needs {error.name or 'TensorFlow'}; install it with "
            "pip install 'syncbn-convert[tensorflow]'"
        ) from error
    if name == KERAS and library.backend.backend() != "tensorflow":
        raise UsageError(
            f"Keras runs on {library.backend.backend()}; set KERAS_BACKEND=tensorflow to read its "
            "models"
        )
    return library


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Keep what TensorFlow writes, from C++ too, off standard error, unless logs are wanted."""
    if _logger.isEnabledFor(logging.DEBUG):
        yield
        return
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
