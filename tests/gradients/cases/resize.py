"""Samples of Resize."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812

from tests.gradients.cases.registry import case
from tests.gradients.sample import Array, Draw, Sample, ints

_TORCH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nearest": (
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "nearest"},
    ),
    "linear": (
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "bilinear", "align_corners": False},
    ),
    "corners": (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "bilinear", "align_corners": True},
    ),
    "cubic": (
        {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75},
        {"mode": "bicubic", "align_corners": False},
    ),
}


@case("Resize")
def resize_as_torch(op_type: str, draw: Draw) -> Sample:
    name = draw.one_of(*_TORCH)
    attributes, options = _TORCH[name]
    x = draw.values([draw.batch(), draw.integer(1, 2), draw.integer(2, 4), draw.integer(2, 4)])
    sizes = [draw.integer(2, 6), draw.integer(2, 6)]
    scales = [draw.one_of(0.5, 1.0, 2.0, 3.0) for _ in range(2)]
    by_size = draw.flag() or name == "corners"
    if not by_size:
        sizes = [int(size * scale) for size, scale in zip(x.shape[2:], scales, strict=True)]
        scales = [size / own for size, own in zip(sizes, x.shape[2:], strict=True)]
    return Sample(
        op_type=op_type,
        inputs=_operands(x, sizes if by_size else None, scales),
        attributes=attributes,
        oracle=(lambda x: F.interpolate(x, size=sizes, **options)) if x.size else None,
        single=True,
    )


@case("Resize")
def resize_otherwise(op_type: str, draw: Draw) -> Sample:
    attributes = {
        "mode": draw.one_of("nearest", "linear"),
        "coordinate_transformation_mode": draw.one_of(
            "half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"
        ),
        "nearest_mode": draw.one_of("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    }
    x = draw.values([draw.batch(), draw.integer(1, 2), draw.integer(1, 4), draw.integer(1, 4)])
    # at 1, the reference implementation divides by zero for align_corners
    sizes = [draw.integer(2, 6), draw.integer(2, 6)]
    return Sample(
        op_type=op_type,
        inputs=_operands(x, sizes, []),
        attributes=attributes,
        oracle=None,
        single=True,
    )


@case("Resize")
def resize_named_axes(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.batch(), draw.integer(2, 3), draw.integer(2, 4), draw.integer(2, 4)])
    axes = draw.one_of([2, 3], [3, 2], [-1], [2])
    attributes = {
        "axes": axes,
        "mode": draw.one_of("nearest", "linear", "cubic"),
        "antialias": 0,
    }
    if attributes["mode"] != "nearest":
        attributes["antialias"] = int(draw.flag())
    sizes = ints([draw.integer(2, 6) for _ in axes])
    scales = np.asarray([draw.one_of(0.5, 2.0, 1.5) for _ in axes], np.float32)
    return Sample(
        op_type=op_type,
        inputs=[x, None, None, sizes] if draw.flag() else [x, None, scales],
        attributes=attributes,
        oracle=None,
        single=True,
    )


@case("Resize")
def resize_nearest_anywhere(op_type: str, draw: Draw) -> Sample:
    x = draw.values([draw.integer(1, 3) for _ in range(draw.integer(1, 4))])
    scales = [draw.one_of(1, 2, 3) for _ in range(x.ndim)]

    def oracle(x: Any) -> Any:
        for axis, scale in enumerate(scales):
            x = x.repeat_interleave(scale, axis)
        return x

    return Sample(
        op_type=op_type,
        inputs=[x, None, np.asarray(scales, np.float32)],
        attributes={
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        oracle=oracle,
        single=True,
    )


def _operands(x: Array, sizes: list[int] | None, scales: list[float]) -> list[Array | None]:
    """Return the inputs, with scales or with sizes."""
    if sizes is None:
        return [x, None, np.asarray([1.0, 1.0, *scales], np.float32)]
    return [x, None, None, ints([*x.shape[:2], *sizes])]
