"""Tensors and description of `.safetensors` files that this package wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors

from syncbn_convert.doors.nested_text import parse_json
from syncbn_convert.errors import ModelFileError

Array = npt.NDArray[Any]

_TYPES = frozenset(
    ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64"]
)


def read(path: Path, key: str, *, kind: str, cure: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the tensors by name, and the JSON object under `key` of the file's metadata.

    Args:
        path: The file.
        key: Of the description.
        kind: What the file should be, for messages, such as `a checkpoint`.
        cure: What to do about another file.

    Raises:
        ModelFileError: if the file is missing, malformed, has no description, or tensors of types
            that NumPy does not have.
    """
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path}: is no regular file; give {kind}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {}
            for name in file.keys():  # noqa: SIM118
                held = file.get_slice(name).get_dtype()
                if held not in _TYPES:
                    raise ModelFileError(
                        f"{path}: tensor '{name}' is of type {held}, which is not read; {cure}"
                    )
                tensors[name] = file.get_tensor(name)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error.strerror or error}; give {kind}"
        ) from error
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{path}: not {kind} ({error}); {cure}") from error
    try:
        description = parse_json(metadata[key], dict)
    except KeyError as error:
        raise ModelFileError(f"{path}: holds tensors, but is not {kind}; {cure}") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: its description is damaged ({error}); {cure}") from error
    return tensors, description
