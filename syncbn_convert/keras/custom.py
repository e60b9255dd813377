"""Layers and functions that a model file needs and Keras does not have."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from syncbn_convert.errors import UsageError
from syncbn_convert.keras.messages import cause_of

_sources: contextvars.ContextVar[tuple[str | Mapping[str, Any], ...]] = contextvars.ContextVar(
    "sources", default=()
)


_trusted: contextvars.ContextVar[bool] = contextvars.ContextVar("trusted", default=False)


@contextlib.contextmanager
def trust_model_code() -> Iterator[None]:
    """Let files of Keras and TensorFlow that are read inside run the code that they hold.

    Lambda layers, arbitrary functions and operators that touch files, processes and the network are
    refused otherwise. Only for files of people whose programs you would run.
    """
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def is_trusted() -> bool:
    """Whether the code of files that are read may run."""
    return _trusted.get()


@contextlib.contextmanager
def custom_objects(*sources: str | Mapping[str, Any]) -> Iterator[None]:
    """Let models of Keras that are read inside find layers and functions of others.

    Args:
        *sources: Names of modules, whose classes and functions are taken, such as `package.module`,
            or dictionaries from name to class or function. Modules are imported when a model is
            read, from the working directory, too.
    """
    token = _sources.set((*_sources.get(), *sources))
    try:
        yield
    finally:
        _sources.reset(token)


def collect() -> dict[str, Any]:
    """Return what `custom_objects` was given, by name.

    Raises:
        UsageError: if a module cannot be imported.
    """
    found: dict[str, Any] = {}
    for source in _sources.get():
        found |= dict(source) if isinstance(source, Mapping) else _objects_of(source)
    return found


def _objects_of(name: str) -> dict[str, Any]:
    """Return the classes and functions that a module defines; importing registers others."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever the module raises
        raise UsageError(
            f"custom objects '{name}': cannot be imported: {cause_of(error)}; give the dotted "
            "name of a module that is installed or in the working directory"
        ) from error
    finally:
        sys.path.remove(folder)
    return {
        key: value
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == name
    }
