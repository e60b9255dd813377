"""What a page shows of a model file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.files import tensors
from syncbn_convert.form import batchnorm, training_form
from syncbn_convert.graph import constants, graphs

Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """Moving statistics of one normalization, each float64 [C]."""

    mean: Float64
    variance: Float64

    def moved_to(self, other: LayerStatistics) -> float:
        """Return how far `other` is, as `LayerChange.moved` counts it."""
        if self.mean.shape != other.mean.shape or not self.mean.size:
            return 0.0
        with np.errstate(all="ignore"):
            shift = np.abs(other.mean - self.mean) / np.sqrt(np.abs(other.variance))
            ratio = np.abs(np.log(np.abs(other.variance / self.variance)))
        return float(np.nanmax(np.concatenate([shift, ratio]), initial=0.0))


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """One model file.

    Attributes:
        path: Where it is.
        nbytes: Its size, external data included.
        opset: Version of the standard operators.
        nodes: Number of nodes of the main graph and its bodies.
        batchnorms: How many of them are BatchNormalization.
        synchronized: How many are SyncBatchNormalization.
        layers: Moving statistics by name of the node, in graph order, as far as they are constant.
    """

    path: Path
    nbytes: int
    opset: int
    nodes: int
    batchnorms: int
    synchronized: int
    layers: dict[str, LayerStatistics]


def facts_of(model: ir.Model, path: Path) -> ModelFacts:
    """Return what a page shows of a model that was read from `path`."""
    found = [norm for norm, _ in batchnorm.find(model)]
    synchronized = list(training_form.nodes(model))
    wanted = {id(norm.node) for norm in found} | {id(node) for node in synchronized}
    layers: dict[str, LayerStatistics] = {}
    for node, _, _ in graphs.walk(model):
        if id(node) in wanted:
            mean, variance = (_values(value, model) for value in node.inputs[3:5])
            if mean is not None and variance is not None and mean.shape == variance.shape:
                layers[graphs.label(node)] = LayerStatistics(mean, variance)
    return ModelFacts(
        path=path,
        nbytes=_bytes_at(path) + _external_bytes(model),
        opset=graphs.opset_version(model),
        nodes=sum(1 for _ in model.graph.all_nodes()),
        batchnorms=len(found),
        synchronized=len(synchronized),
        layers=layers,
    )


def _values(value: ir.Value | None, model: ir.Model) -> Float64 | None:
    if value is None:
        return None
    tensor = value.const_value if value.is_initializer() else None
    tensor = tensor or constants.constant_tensor(value, model)
    return None if tensor is None else tensor.numpy().astype(np.float64)


def _bytes_at(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _external_bytes(model: ir.Model) -> int:
    return sum(t.nbytes for t in tensors.tensors_of(model) if tensors.is_outside(t))
