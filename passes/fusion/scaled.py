"""Weights times factors, where their type can hold the products."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.files.scaled_tensor import Bounds, ScaledTensor, block_bounds, read_blocks
from syncbn_convert.files.tensors import WORKERS
from syncbn_convert.graph.dtypes import epsilon, smallest_normal
from syncbn_convert.passes.fusion.affine import Float64, Refusal

Array = npt.NDArray[Any]

_SEARCHED_BYTES = 512 << 10
"""Of weights whose extremes are looked for: each block is compared with what was found before."""
_BLOCKS_WORTH_THREADS = 16
_ROUNDINGS = 2.0


def along(values: Float64, axis: int, rank: int) -> Float64:
    """Return `values` as factors along one of `rank` axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def scaled(tensor: ir.TensorProtocol, factor: Float64, channel_axis: int) -> ScaledTensor:
    """Return a weight times `factor`, which broadcasts to it.

    Raises:
        Refusal: if there are no weights, if products overflow their type, or if those of an output
            channel fall below what it can tell apart.
    """
    if not tensor.size:
        raise Refusal("the weights are empty")
    if not tensor.dtype.is_floating_point():
        raise Refusal("the weights are whole numbers")
    dtype = tensor.dtype.numpy()
    earlier = tensor.factor if isinstance(tensor, ScaledTensor) else np.float64(1.0)
    source = tensor.source if isinstance(tensor, ScaledTensor) else tensor
    factor = earlier * factor
    with np.errstate(all="ignore"):
        largest = _largest(source, factor) * np.abs(factor)
        finite = np.isfinite(largest.astype(dtype).astype(np.float64)).all()
    if not finite:
        raise Refusal(f"the fused weights overflow {dtype}")
    others = tuple(axis for axis in range(factor.ndim) if axis != channel_axis)
    of_channels = largest.max(axis=others, initial=0.0)
    result = ScaledTensor(source, factor)
    if (of_channels < smallest_normal(dtype)).any():
        _require_precision(result, channel_axis)
    return result


def _largest(tensor: ir.TensorProtocol, factor: Float64) -> Float64:
    """Return the largest magnitude of the weights that share a factor."""
    shared = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)

    bounds = block_bounds(tensor, _SEARCHED_BYTES)
    if len(bounds) < _BLOCKS_WORTH_THREADS:
        return _largest_of_blocks(tensor, bounds, shared)
    share = -(-len(bounds) // WORKERS)
    shares = [bounds[start : start + share] for start in range(0, len(bounds), share)]
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(lambda part: _largest_of_blocks(tensor, part, shared), shares))
    largest: Float64 = np.maximum.reduce(parts) if 0 in shared else np.concatenate(parts)
    return largest


def _largest_of_blocks(
    tensor: ir.TensorProtocol, bounds: Sequence[Bounds], shared: tuple[int, ...]
) -> Float64:
    found: list[Array] = []
    for block in read_blocks(tensor, bounds):
        high, low = block.max(axis=shared, keepdims=True), block.min(axis=shared, keepdims=True)
        largest = np.maximum(high, -low)
        if found and 0 in shared:
            np.maximum(found[0], largest, out=found[0])
        else:
            found.append(largest)
    return np.concatenate(found).astype(np.float64)


def _require_precision(tensor: ScaledTensor, channel_axis: int) -> None:
    wide = _product(tensor.source.numpy(), tensor.factor)
    error = np.abs(tensor.numpy().astype(np.float64) - wide)
    others = tuple(axis for axis in range(wide.ndim) if axis != channel_axis)
    largest = np.abs(wide).max(axis=others, keepdims=True, initial=0.0)
    dtype = tensor.dtype.numpy()
    if (error > _ROUNDINGS * epsilon(dtype) * largest).any():
        raise Refusal(f"the fused weights underflow {dtype}")


def _product(block: Array, factor: Float64) -> Float64:
    product: Float64 = np.multiply(block, factor, dtype=np.float64)
    return product
