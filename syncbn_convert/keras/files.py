"""Model files of Keras 3 and tf_keras, read by the library that wrote them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from syncbn_convert.errors import ModelFileError
from syncbn_convert.keras import custom
from syncbn_convert.keras.libraries import KERAS, TF_KERAS, load_library
from syncbn_convert.keras.messages import cause_of

_ARCHIVE, _HDF5 = ".keras", ".h5"
_METADATA = "metadata.json"
_VERSION = "keras_version"
_BEFORE_3 = "2."
_SAVED_MODEL, _LAYERS = "saved_model.pb", "keras_metadata.pb"


def is_keras_path(path: Path) -> bool:
    """Whether a path is that of a model of Keras or TensorFlow, by its name or as a folder."""
    return path.suffix.lower() in (_ARCHIVE, _HDF5) or path.is_dir()


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
        ModelFileError: if the file cannot be read.
    """
    if not path.exists():
        raise ModelFileError(
            f"{path}: is no file; give the path of a .keras or .h5 file or a folder"
        )
    version = _written_by(path)
    library = load_library(TF_KERAS if version.startswith(("1.", _BEFORE_3)) else KERAS)
    own = custom.collect()
    try:
        return library.models.load_model(path, custom_objects=own, compile=False), library
    except Exception as error:  # whatever zip, HDF5, JSON and layers raise
        raise ModelFileError(
            f"{path}: cannot be read by {_title(library)}: {cause_of(error)}; name a "
            "module of its own layers with --custom-objects, or save the model again"
        ) from error


def _title(library: Any) -> str:
    name = "Keras" if library.__name__ == KERAS else library.__name__
    return f"{name} {library.__version__}"


def _written_by(path: Path) -> str:
    """Return the version of Keras that wrote a file; empty where it does not say."""
    if path.is_dir():
        return _BEFORE_3
    try:
        if path.suffix.lower() == _ARCHIVE:
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read(_METADATA))[_VERSION])
        return _version_in_hdf5(path)
    except (ImportError, OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return ""


def _version_in_hdf5(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        version = file.attrs[_VERSION]
    return version.decode() if isinstance(version, bytes) else str(version)
