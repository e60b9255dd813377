"""Batch normalization in float64 NumPy, written from the definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Parameters of one layer, each [C]."""

    scale: Array
    bias: Array
    mean: Array
    var: Array
    epsilon: float = 1e-5
    momentum: float = 0.9
    axis: int = 1


@dataclasses.dataclass(frozen=True)
class Step:
    """What one training step returns: outputs per replica, and the next moving statistics."""

    outputs: list[Float64]
    mean: Float64
    var: Float64


def train(layer: Layer, pieces: Sequence[Array]) -> Step:
    """Normalize the pieces of a global batch by the statistics of their union."""
    rows = [
        np.moveaxis(piece.astype(np.float64), layer.axis, -1).reshape(-1, len(layer.scale))
        for piece in pieces
    ]
    union = np.concatenate(rows)
    old_mean, old_var = layer.mean.astype(np.float64), layer.var.astype(np.float64)
    if not len(union):
        return Step([piece.astype(np.float64) for piece in pieces], old_mean, old_var)
    mean = union.mean(axis=0)
    var = ((union - mean) ** 2).mean(axis=0)
    keep = float(np.float32(layer.momentum))
    outputs = [_normalize(layer, piece, mean, var) for piece in pieces]
    return Step(outputs, old_mean * keep + mean * (1 - keep), old_var * keep + var * (1 - keep))


def infer(layer: Layer, piece: Array) -> Float64:
    """Normalize by the moving statistics."""
    return _normalize(layer, piece, layer.mean, layer.var)


def _normalize(layer: Layer, piece: Array, mean: Array, var: Array) -> Float64:
    shape = [1] * piece.ndim
    shape[layer.axis] = -1
    scale, bias, centre, spread = (
        np.asarray(value, dtype=np.float64).reshape(shape)
        for value in (layer.scale, layer.bias, mean, var)
    )
    epsilon = float(np.float32(layer.epsilon))
    return (piece.astype(np.float64) - centre) / np.sqrt(spread + epsilon) * scale + bias
