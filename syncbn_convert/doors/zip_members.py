"""Members of zip archives, bounded before they are unpacked."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from syncbn_convert.errors import ModelFileError

_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_LARGEST_RATIO = 1100
"""Deflate makes 1032 bytes of one at most."""
_UNSUSPECTED_BYTES = 64 << 20
_LIKELY_RATIO = 200
"""What weights, also untrained ones, are packed by."""


@contextlib.contextmanager
def open_archive(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive each of whose members can be unpacked.

    Args:
        path: The file.
        kind: What it should be, for messages, such as `an .npz file`.

    Raises:
        ModelFileError: if it is no archive, or a member is encrypted, packed by an unknown method
            or much larger than its packed bytes can hold. Also for what goes wrong inside the
            context with the bytes of a member.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if fault := _fault(member):
                    raise ModelFileError(f"{path}: member '{member.filename}' {fault}")
            yield archive
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error.strerror or error}; give {kind}"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ModelFileError(f"{path}: not {kind} ({error}); save it again") from error


def _fault(member: zipfile.ZipInfo) -> str:
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted; save it without a password"
    if member.compress_type not in _PLAIN:
        return "is packed in another way than stored or deflated; save it again"
    allowed = _LIKELY_RATIO * member.compress_size + _UNSUSPECTED_BYTES
    if member.file_size > min(allowed, _LARGEST_RATIO * max(1, member.compress_size)):
        return (
            f"claims {member.file_size} bytes of {member.compress_size} packed ones, as a zip bomb "
            "does; save it without compression"
        )
    return ""
