"""Model files of Keras 3 and tf_keras, screened and then read by the library that wrote them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from syncbn_convert.errors import ModelFileError
from syncbn_convert.keras import custom, stored
from syncbn_convert.keras.libraries import KERAS, TF_KERAS, load_library
from syncbn_convert.keras.messages import cause_of

_BEFORE_3 = ("1.", "2.")
_SAVED_MODEL, _LAYERS = "saved_model.pb", "keras_metadata.pb"


def is_keras_path(path: Path) -> bool:
    """Whether a path is that of a model of Keras or TensorFlow, by its name or as a folder."""
    return path.suffix.lower() in (stored.ARCHIVE, stored.HDF5) or path.is_dir()


def is_saved_model(path: Path) -> bool:
    """Whether a path is a SavedModel folder.

    Raises:
        ModelFileError: if it is another folder.
    """
    if path.is_dir() and not (path / _SAVED_MODEL).is_file():
        raise ModelFileError(
            f"{path}: is a folder without {_SAVED_MODEL}; give a SavedModel folder or a model file"
        )
    return path.is_dir()


def has_keras_metadata(path: Path) -> bool:
    """Whether tf_keras wrote a SavedModel, with its layers."""
    return (path / _LAYERS).is_file()


def load(path: Path) -> tuple[Any, Any]:
    """Return the model of a file, and the library that it is of.

    Raises:
        UsageError: if TensorFlow is not installed, or custom objects cannot be imported.
        ModelFileError: if the file cannot be read, or would run code that the user has not named.
    """
    if not path.exists():
        raise ModelFileError(
            f"{path}: is no file; give the path of a .keras or .h5 file or a folder"
        )
    if path.is_dir():
        library = load_library(TF_KERAS)
        with contextlib.ExitStack() as stack:
            return _load_folder(path, library, stack), library
    content = stored.read(path)
    library = load_library(TF_KERAS if content.version.startswith(_BEFORE_3) else KERAS)
    own = custom.collect()
    if not custom.is_trusted():
        from syncbn_convert.keras import config_screen

        _refuse(path, config_screen.screen_for(library, own).fault(_without_training(content)))
    return _load(path, library, own, path, compiled=False), library


def load_compiled(path: Path, library: Any) -> Any:
    """Return the model of a file that `load` has read, with its optimizer and its loss.

    Raises:
        ModelFileError: if these cannot be read, or would run code that the user has not named.
    """
    own = custom.collect()
    if not custom.is_trusted():
        from syncbn_convert.keras import config_screen

        content = stored.read(path)
        screen = config_screen.screen_for(library, own)
        _refuse(path, screen.fault([content.config, content.training]))
    return _load(path, library, own, path, compiled=True)


def _load_folder(path: Path, library: Any, stack: contextlib.ExitStack) -> Any:
    """Return the model of a SavedModel folder that holds layers of tf_keras."""
    from syncbn_convert.keras import saved_model

    own = custom.collect()
    folder = path
    if not custom.is_trusted():
        folder = stack.enter_context(saved_model.screened_copy(path, needs_layers=True))
        _refuse(path, saved_model.layers_fault(folder, library, own))
    return _load(folder, library, own, path, compiled=False)


def _load(folder: Path, library: Any, own: dict[str, Any], path: Path, *, compiled: bool) -> Any:
    trusted = custom.is_trusted()
    try:
        with _safe_mode(library, not trusted):
            return library.models.load_model(
                folder, custom_objects=own, compile=compiled, safe_mode=not trusted
            )
    except Exception as error:  # whatever zip, HDF5, JSON and layers raise
        raise ModelFileError(
            f"{path}: cannot be read by {_title(library)}: {cause_of(error)}; name a "
            "module of its own layers with --custom-objects, or save the model again"
        ) from error


@contextlib.contextmanager
def _safe_mode(library: Any, safe: bool) -> Any:
    """Let tf_keras refuse Lambda layers in all of its formats; Keras 3 does without help."""
    if library.__name__ == KERAS:
        yield
        return
    from tf_keras.src.saving import serialization_lib

    with serialization_lib.SafeModeScope(safe):
        yield


def _without_training(content: stored.Stored) -> Any:
    config = content.config
    if isinstance(config, dict):
        return {key: value for key, value in config.items() if key != "compile_config"}
    return config


def _refuse(path: Path, fault: str) -> None:
    if fault:
        raise ModelFileError(f"{path}: {fault}")


def _title(library: Any) -> str:
    name = "Keras" if library.__name__ == KERAS else library.__name__
    return f"{name} {library.__version__}"
