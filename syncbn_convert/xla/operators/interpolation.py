"""Resize: along each axis a linear map, whose matrix is known when the program is traced.

Coordinates, weights and their borders are those of the ONNX specification of Resize.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.translations import Array, Call, operator

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@operator("Resize", samples=sample_axes.untouched, known=(2, 3))
def resize(at: Call, x: Array, *_: Array) -> Array:
    """Nearest, linear and cubic; no crop (tf_crop_and_resize), aspect ratio policy stretch."""
    if at.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise at.refuse("it crops (tf_crop_and_resize)", "crop with Slice")
    if at.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise at.refuse("it keeps the aspect ratio", "give scales")
    axes = [axis % x.ndim for axis in at.ints("axes") or range(x.ndim)]
    scales, sizes = at.known(2), at.known_ints(3)
    kind = x.dtype
    for place, axis in enumerate(axes):
        own = x.shape[axis]
        if sizes is not None:
            new, scale = sizes[place], sizes[place] / max(own, 1)
        else:
            assert scales is not None
            scale = float(scales[place])
            new = int(np.floor(own * scale))
        if own and not (new == own and scale == 1.0):
            x = _along(at, x, axis, _Line(own, new, scale))
    return x.astype(kind)


@dataclasses.dataclass(frozen=True)
class _Line:
    """An axis: its size, the new one, and new by old as coordinates have it."""

    own: int
    new: int
    scale: float

    def coordinates(self, mode: str) -> Matrix:
        """Return where each new element lies among the old ones."""
        places = np.arange(self.new, dtype=np.float64)
        if mode == "asymmetric":
            return places / self.scale
        if mode == "align_corners":
            return places * ((self.own - 1) / (self.new - 1) if self.new > 1 else 0.0)
        if mode == "pytorch_half_pixel" and self.new <= 1:
            return np.zeros(self.new)
        found = (places + 0.5) / self.scale - 0.5
        if mode == "half_pixel_symmetric":
            adjustment = self.new / (self.scale * self.own)
            center = self.own / 2
            return center * (1 - adjustment) + found
        return found


def _along(at: Call, x: Array, axis: int, line: _Line) -> Array:
    mode = at.text("mode", "nearest")
    places = line.coordinates(at.text("coordinate_transformation_mode", "half_pixel"))
    if mode == "nearest":
        rounded = _rounded(places, at.text("nearest_mode", "round_prefer_floor"))
        return jnp.take(x, np.clip(rounded, 0, line.own - 1), axis, mode="clip")
    matrix = _matrix(at, mode, places, line).astype(_at_least_float32(x.dtype))
    moved = jnp.moveaxis(x.astype(matrix.dtype), axis, -1)
    return jnp.moveaxis(jnp.matmul(moved, matrix.T, precision=at.precision), -1, axis)


def _at_least_float32(dtype: Any) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def _rounded(places: Matrix, mode: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if mode == "floor":
        return np.floor(places).astype(np.int64)
    if mode == "ceil":
        return np.ceil(places).astype(np.int64)
    if mode == "round_prefer_ceil":
        return np.floor(places + 0.5).astype(np.int64)
    return np.ceil(places - 0.5).astype(np.int64)


def _matrix(at: Call, mode: str, places: Matrix, line: _Line) -> Matrix:
    """Return the weights of old elements in new ones, [new, old]."""
    stretch = 1.0
    if at.integer("antialias", 0) and line.scale < 1.0:
        stretch = line.scale
    reach = 1.0 if mode == "linear" else 2.0
    span = int(np.ceil(reach / stretch)) + 1
    first = np.floor(places).astype(np.int64) - span
    taps = first[:, None] + np.arange(2 * span + 2)
    distances = (places[:, None] - taps) * stretch
    if mode == "linear":
        weights = np.maximum(1.0 - np.abs(distances), 0.0)
    else:
        weights = _cubic(np.abs(distances), at.real("cubic_coeff_a", -0.75))
    inside = (taps >= 0) & (taps < line.own)
    if at.integer("exclude_outside", 0):
        weights = np.where(inside, weights, 0.0)
    if at.integer("antialias", 0):
        weights = np.where(inside, weights, 0.0)
    weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((line.new, line.own))
    rows = np.broadcast_to(np.arange(line.new)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, line.own - 1)), weights)
    return matrix


def _cubic(x: Matrix, a: float) -> Matrix:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
