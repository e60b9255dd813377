"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.operators.sliding_windows import Window, window_of
from syncbn_convert.xla.translations import Array, Call, operator

_LETTERS = "DHW"


@operator("Conv", kind="narrow", samples=sample_axes.leading)
def conv(at: Call, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Any groups, dilations, strides and pads, `auto_pad` too."""
    window = window_of(at, x.shape[2:], weight.shape[2:])
    found = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(weight),
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=_axes(x.ndim),
        feature_group_count=at.integer("group", 1),
        precision=at.precision,
    )
    return _with_bias(found, bias)


@operator("ConvTranspose", kind="narrow", samples=sample_axes.leading)
def conv_transpose(at: Call, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Any groups, dilations, strides, pads, output padding and output shape."""
    group, (inputs, filters, *kernel) = at.integer("group", 1), weight.shape
    window = window_of(at, x.shape[2:], kernel)
    apart = jnp.asarray(weight).reshape(group, inputs // group, filters, *kernel)
    turned = jnp.swapaxes(apart, 1, 2).reshape(group * filters, inputs // group, *kernel)
    found = lax.conv_general_dilated(
        jnp.asarray(x),
        lax.rev(turned, tuple(range(2, x.ndim))),
        [1] * len(kernel),
        _transposed_pads(at, window, x.shape[2:]),
        lhs_dilation=window.strides,
        rhs_dilation=window.dilations,
        dimension_numbers=_axes(x.ndim),
        feature_group_count=group,
        precision=at.precision,
    )
    return _with_bias(found, bias)


def _transposed_pads(at: Call, window: Window, sizes: Sequence[int]) -> list[tuple[int, int]]:
    extra = at.ints("output_padding") or [0] * len(sizes)
    wanted = at.ints("output_shape")
    mode = at.text("auto_pad", "NOTSET")
    if wanted is None and mode.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(sizes, window.strides, strict=True)]
    pads = list(window.pads)
    if wanted is not None:
        for axis, size in enumerate(wanted[-len(sizes) :]):
            full = window.strides[axis] * (sizes[axis] - 1) + extra[axis] + window.extents[axis]
            total = max(full - size, 0)
            small = total // 2
            large = total - small
            pads[axis] = (large, small) if mode == "SAME_LOWER" else (small, large)
    return [
        (extent - 1 - low, extent - 1 - high + more)
        for extent, (low, high), more in zip(window.extents, pads, extra, strict=True)
    ]


def _axes(rank: int) -> Any:
    letters = _LETTERS[-(rank - 2) :]
    return lax.conv_dimension_numbers(
        (1,) * rank, (1,) * rank, (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    )


def _with_bias(value: Array, bias: Array | None) -> Array:
    if bias is None:
        return value
    return value + bias.astype(value.dtype).reshape(-1, *[1] * (value.ndim - 2))
