"""The bytes of Keras' files: archives and HDF5, checked before Keras reads them."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from syncbn_convert.doors.nested_text import parse_json
from syncbn_convert.doors.zip_members import open_archive
from syncbn_convert.errors import ModelFileError

if TYPE_CHECKING:
    import h5py

ARCHIVE, HDF5 = ".keras", ".h5"
_METADATA, _CONFIG = "metadata.json", "config.json"
_TEXTS = (_METADATA, _CONFIG)
_VERSION, _MODEL_CONFIG, _TRAINING_CONFIG = "keras_version", "model_config", "training_config"
_LARGEST_TEXT = 256 << 20
_UNSUSPECTED_BYTES = 64 << 20
_LIKELY_RATIO = 1000
"""Deflate makes 1032 bytes of one at most."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a file of Keras says of itself.

    Attributes:
        version: Version of Keras that wrote it; empty where it does not say.
        config: Configuration of the model.
        training: Configuration of optimizer, loss and metrics, as far as it lies apart.
    """

    version: str
    config: Any
    training: Any


def read(path: Path) -> Stored:
    """Check a `.keras` or `.h5` file and return its configuration; weights are not read.

    Raises:
        ModelFileError: if it is neither, is damaged, leads to other files, or claims far more data
            than it has.
    """
    if not path.is_file():
        raise ModelFileError(
            f"{path}: is no file; give the path of a .keras or .h5 file or a folder"
        )
    return _read_archive(path) if path.suffix.lower() == ARCHIVE else _read_hdf5(path)


def _read_archive(path: Path) -> Stored:
    with open_archive(path, "a .keras file") as archive:
        names = archive.namelist()
        texts = [_text(archive, name, path) if name in names else {} for name in _TEXTS]
        for name in names:
            with archive.open(name) as member:
                if name.endswith(HDF5):
                    _check_member(member, archive.getinfo(name), path)
    metadata, config = texts
    return Stored(_version(metadata.get(_VERSION)), config, None)


def _text(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    if archive.getinfo(name).file_size > _LARGEST_TEXT:
        raise ModelFileError(f"{path}: its {name} is larger than any; save the model again")
    return _parsed(archive.read(name), path, name)


def _parsed(text: str | bytes, path: Path, name: str) -> Any:
    try:
        return parse_json(text, dict)
    except ValueError as error:
        raise ModelFileError(
            f"{path}: its {name} cannot be read ({error}); save the model again"
        ) from error


def _check_member(member: IO[bytes], info: zipfile.ZipInfo, path: Path) -> None:
    """Check an HDF5 file in an archive; what is packed goes to a temporary file first."""
    if info.compress_type == zipfile.ZIP_STORED:
        _check_hdf5(member, path)
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(member, unpacked, 1 << 20)
        _check_hdf5(unpacked, path)


def _check_hdf5(file: IO[bytes] | Path, path: Path) -> None:
    with _hdf5(file, path) as opened:
        _check_links(opened, path)


def _read_hdf5(path: Path) -> Stored:
    with _hdf5(path, path) as file:
        _check_links(file, path)
        version, config, training = (
            _attribute(file, name, path) for name in (_VERSION, _MODEL_CONFIG, _TRAINING_CONFIG)
        )
    return Stored(
        _version(version),
        None if config is None else _parsed(config, path, _MODEL_CONFIG),
        None if training is None else _parsed(training, path, _TRAINING_CONFIG),
    )


def _hdf5(file: IO[bytes] | Path, path: Path) -> h5py.File:
    try:
        import h5py
    except ImportError as error:
        raise ModelFileError(
            f"{path}: needs h5py; install it with pip install 'syncbn-convert[tensorflow]'"
        ) from error
    try:
        return h5py.File(file, "r")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelFileError(
            f"{path}: cannot be read by Keras: it is no whole HDF5 file; save the model again"
        ) from error


def _attribute(file: h5py.File, name: str, path: Path) -> str | bytes | None:
    try:
        value = file.attrs.get(name)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ModelFileError(
            f"{path}: attribute '{name}' cannot be read; save the model again"
        ) from error
    return value if isinstance(value, str | bytes) else None


def _version(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value or "")


def _check_links(file: h5py.File, path: Path) -> None:
    """Refuse links and storage outside the file, and data that is claimed and not there."""
    try:
        for name, dataset in _datasets(file, path):
            if dataset.external or dataset.is_virtual:
                raise ModelFileError(
                    f"{path}: dataset '{name}' has its data in other files, which are not read; "
                    "save the model with its weights inside"
                )
            stored = dataset.id.get_storage_size()
            if dataset.nbytes > _LIKELY_RATIO * stored + _UNSUSPECTED_BYTES:
                raise ModelFileError(
                    f"{path}: dataset '{name}' claims {dataset.nbytes} bytes and has {stored}; "
                    "save the model again"
                )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its HDF5 is damaged; save the model again") from error


def _datasets(file: h5py.File, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the datasets that lie in a file, each once; links are not followed."""
    import h5py

    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [("", file)]
    while pending:
        place, group = pending.pop()
        for name in group:
            where = f"{place}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                continue
            if not isinstance(link, h5py.HardLink):
                raise ModelFileError(
                    f"{path}: '{where}' is a link to another file, which is not read; save the "
                    "model with its weights inside"
                )
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append((where, item))
            elif isinstance(item, h5py.Dataset):
                yield where, item
