"""Moving statistics in files of their own: `.safetensors`, one tensor under each name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import safetensors.numpy

from syncbn_convert.doors import safetensors_file
from syncbn_convert.errors import ConversionError, ModelFileError
from syncbn_convert.form.stateful_layers import layers_digest, layers_of

Array = npt.NDArray[Any]

_METADATA_KEY = "syncbn_convert"
"""One key for all: safetensors does not keep the order of several, and bytes must not vary."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moving statistics and where they come from.

    Attributes:
        tensors: Moving means and variances by name of their initializers, each [C].
        layers_digest: Digest of the layers of the model they belong to (see `layers`).
        provenance: How they were made, such as method, samples and batches.
    """

    tensors: dict[str, Array]
    layers_digest: str
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def of_form(form: ir.Model) -> Statistics:
    """Return the moving statistics that a training form holds."""
    layers = layers_of(form)
    names = [name for layer in layers for name in (layer.mean, layer.var)]
    return Statistics({name: _tensor(form, name).numpy() for name in names}, layers_digest(layers))


def apply_to_form(statistics: Statistics, form: ir.Model) -> None:
    """Replace the moving statistics of a training form, in place.

    Raises:
        ConversionError: if the statistics belong to another model.
    """
    layers = layers_of(form)
    names = {name for layer in layers for name in (layer.mean, layer.var)}
    _check_names(names, set(statistics.tensors))
    for name in sorted(names):
        old, new = _tensor(form, name), statistics.tensors[name]
        if tuple(old.shape.numpy()) != new.shape:
            raise ConversionError(
                f"statistic '{name}' has shape {list(new.shape)}, but the model's has "
                f"{list(old.shape.numpy())}; take statistics of the same model"
            )
        if not np.all(np.isfinite(new.astype(np.float64))):
            raise ConversionError(
                f"statistic '{name}' is not finite; calibrate again on finite data"
            )
        value = form.graph.initializers[name]
        value.const_value = ir.tensor(new.astype(old.dtype.numpy()), name=name, dtype=old.dtype)
    if statistics.layers_digest != layers_digest(layers):
        raise ConversionError(
            "the statistics were taken of a model whose layers have other names or sizes "
            f"(digest {statistics.layers_digest[:12]}, the model's is "
            f"{layers_digest(layers)[:12]}); take statistics of the same model"
        )


def save(statistics: Statistics, path: Path) -> None:
    """Write statistics; the same statistics give the same bytes.

    Raises:
        ModelFileError: if the file cannot be written.
    """
    metadata = {"layers_digest": statistics.layers_digest, **statistics.provenance}
    content = safetensors.numpy.save(
        dict(sorted(statistics.tensors.items())),
        metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be written: {error.strerror or error}; choose another output"
        ) from error


def load(path: Path) -> Statistics:
    """Read statistics.

    Raises:
        ModelFileError: if the file is missing, malformed or not written by `save`.
    """
    tensors, described = safetensors_file.read(
        path,
        _METADATA_KEY,
        kind="a .safetensors file of statistics",
        cure="write it again with 'syncbn-convert statistics'",
    )
    digest = described.pop("layers_digest", None)
    if not isinstance(digest, str):
        raise ModelFileError(
            f"{path}: does not say which layers its statistics are of; write it again with "
            "'syncbn-convert statistics'"
        )
    return Statistics(tensors, digest, described)


def _tensor(form: ir.Model, name: str) -> ir.TensorProtocol:
    tensor = form.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def _check_names(wanted: set[str], given: set[str]) -> None:
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    if missing or unknown:
        example = f"'{missing[0]}' is missing" if missing else f"'{unknown[0]}' is not in the model"
        raise ConversionError(
            f"the statistics do not fit the model: {len(missing)} missing, {len(unknown)} "
            f"unknown, {example}; take statistics of the same model"
        )
