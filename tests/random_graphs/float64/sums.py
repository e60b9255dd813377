"""Sums of products: convolutions and matrix products."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as nn

from tests.random_graphs.float64.values import (
    ROUNDINGS,
    Array,
    Float64,
    Known,
    Site,
    along,
    computed,
    given,
    operator,
)
from tests.random_graphs.float64.windows import padded, windows


def _product_error(x: Known, w: Known, terms: float) -> float:
    return x.error + 2 * w.error + terms * computed(x) + ROUNDINGS * x.unit


def _weights_size(w: Known) -> Float64:
    """Halves far below the largest weight of a node may have lost digits."""
    if w.dtype == np.float16:
        return np.full(w.value.shape, np.abs(w.value).max(initial=0.0))
    return w.size


@operator("Conv")
def _conv(site: Site, x: Known, w: Known, b: Known | None = None) -> Known:
    rank = x.value.ndim - 2
    pads = windows(site, w.value.shape[2:], x.value.shape[2:])
    run = (nn.conv1d, nn.conv2d, nn.conv3d)[rank - 1]

    def of(values: Array, weights: Array, bias: Array | None) -> Float64:
        result: Float64 = run(
            padded(values, pads),
            torch.tensor(weights),
            None if bias is None else torch.tensor(bias),
            site.ints("strides", [1] * rank),
            0,
            site.ints("dilations", [1] * rank),
            site.attributes.get("group", 1),
        ).numpy()
        return result

    return Known(
        of(x.value, w.value, None if b is None else b.value),
        x.dtype,
        of(x.size, _weights_size(w), None if b is None else b.size),
        _product_error(x, w, math.prod(w.value.shape[1:]) + 1) + (0.0 if b is None else b.error),
    )


@operator("ConvTranspose")
def _conv_transpose(site: Site, x: Known, w: Known, b: Known | None = None) -> Known:
    rank = x.value.ndim - 2
    pads = site.ints("pads", [0] * 2 * rank)
    extra = site.ints("output_padding", [0] * rank)
    run = (nn.conv_transpose1d, nn.conv_transpose2d, nn.conv_transpose3d)[rank - 1]
    inside = (slice(None), slice(None), *(
        slice(before, -behind or None)
        for before, behind in zip(pads[:rank], pads[rank:], strict=True)
    ))  # fmt: skip

    def of(values: Array, weights: Array, bias: Array | None) -> Float64:
        full = run(
            torch.tensor(values),
            torch.tensor(weights),
            None,
            site.ints("strides", [1] * rank),
            0,
            0,
            site.attributes.get("group", 1),
            site.ints("dilations", [1] * rank),
        ).numpy()
        full = np.pad(full, [(0, 0), (0, 0), *((0, more) for more in extra)])
        result: Float64 = full[inside]
        return result if bias is None else result + along(bias, rank + 2)

    terms = w.value.shape[0] * math.prod(w.value.shape[2:]) + 1
    return Known(
        of(x.value, w.value, None if b is None else b.value),
        x.dtype,
        of(x.size, _weights_size(w), None if b is None else b.size),
        _product_error(x, w, terms) + (0.0 if b is None else b.error),
    )


@operator("MatMul")
def _matmul(site: Site, a: Known, b: Known) -> Known:
    del site
    if not a.is_float:
        return given(np.matmul(a.value, b.value))
    error = max(_product_error(a, b, a.value.shape[-1]), _product_error(b, a, a.value.shape[-1]))
    return Known(
        np.matmul(a.value, b.value),
        a.dtype,
        np.matmul(a.size, _weights_size(b)),
        error,
    )


@operator("Gemm")
def _gemm(site: Site, a: Known, b: Known, c: Known | None = None) -> Known:
    alpha, beta = (float(np.float32(site.attributes.get(n, 1.0))) for n in ("alpha", "beta"))
    turned = [site.attributes.get(name, 0) for name in ("transA", "transB")]

    def of(left: Array, right: Array, added: Array | float, signs: bool) -> Float64:
        left, right = (m.T if t else m for m, t in zip((left, right), turned, strict=True))
        factors = (alpha, beta) if signs else (abs(alpha), abs(beta))
        result: Float64 = factors[0] * (left @ right) + factors[1] * added
        return result

    return Known(
        of(a.value, b.value, 0.0 if c is None else c.value, signs=True),
        a.dtype,
        of(a.size, _weights_size(b), 0.0 if c is None else c.size, signs=False),
        _product_error(a, b, b.value.size) + (0.0 if c is None else c.error),
    )
