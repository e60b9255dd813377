"""How far apart two outputs may be.

Errors are taken relative to the largest |reference| of the output in the run. The derived
tolerance of one output in one run is

    max(base, 8 * noise)

- `base = 4 * max(eps(dtype), eps(accumulator) * sqrt(K))` is what one rewritten sum may lose: `eps`
  is the distance from 1 to the next number of the type, `dtype` the least precise floating type
  that the reference computes in: that of the output, and of inputs, weights and Cast targets that
  an operator calculates with. What a type only stores, such as weights that are cast before they
  are used, and types of 8 bits and less do not count. `accumulator` is float32 for 16-bit types and
  else `dtype` itself, and `K` the number of terms in the largest sum that the reference's weights
  tell of (Conv kernel volume, rows of a Gemm or MatMul).
- `noise` is the reference's own error in that run: its distance from its float64 twin where such a
  twin can be run, else the largest change of the output when ONNX Runtime's graph optimizations are
  switched off and when the floating inputs change by one relative `eps`, signs at random.

`rtol` and `atol` replace all of it: the candidate passes if |candidate - reference| is at most
`atol + rtol * max|reference|`.

NaN and infinity must sit in the same places. Booleans and strings must be equal, and integers too,
unless `atol` allows a difference, as grey levels may have one; `rtol` means nothing to them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.graph.dtypes import epsilon, is_floating, smallest_normal

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_BASE_FACTOR = 4.0
_NOISE_FACTOR = 8.0
TWIN_NOTE = "tolerance from the error against a float64 twin"
NOISE_THAT_HIDES_ERRORS = 0.05
"""Relative noise above which a comparison says little."""

_ARITHMETIC = (
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
)
_CASTING = ("Cast", "CastLike")
_MOVING = (
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def base_tolerance(dtype: np.dtype[Any], reduction_size: int) -> float:
    """Return the relative error that a sum of `reduction_size` terms may show after a rewrite.

    Args:
        dtype: Floating element type, of numpy or ml_dtypes.
        reduction_size: Number of terms in the largest sum.
    """
    accumulator = np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    return _BASE_FACTOR * max(epsilon(dtype), epsilon(accumulator) * math.sqrt(reduction_size))


def scale_of(reference: Array) -> float:
    """Return what errors of an output are relative to: its largest finite magnitude.

    An output without any takes the smallest normal number of its type, or 1 for integers.
    """
    floating = is_floating(reference.dtype)
    if not floating and reference.dtype.kind not in "iub":
        return 1.0
    magnitudes = np.abs(reference.astype(np.float64))
    largest = float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))
    return largest or (smallest_normal(reference.dtype) if floating else 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The tolerance that holds for all outputs of one model.

    Attributes:
        rtol: Relative tolerance of the user.
        atol: Absolute tolerance of the user.
        dtypes: Floating types that the reference computes in.
        reduction_size: Number of terms in its largest sum.
    """

    rtol: float | None
    atol: float | None
    dtypes: frozenset[np.dtype[Any]]
    reduction_size: int

    @property
    def derived(self) -> bool:
        """Whether the user gave no tolerance."""
        return self.rtol is None and self.atol is None

    def allowed(self, reference: Array, noise: float) -> float:
        """Return the largest |candidate - reference| that passes.

        Args:
            reference: Output of the reference.
            noise: Absolute error of that output.
        """
        if not is_floating(reference.dtype):
            return (self.atol or 0.0) if reference.dtype.kind in "iu" else 0.0
        scale = scale_of(reference)
        if not self.derived:
            return (self.atol or 0.0) + (self.rtol or 0.0) * scale
        coarsest = max((*self.dtypes, reference.dtype), key=epsilon)
        return max(base_tolerance(coarsest, self.reduction_size) * scale, _NOISE_FACTOR * noise)


def tolerance_for(model: ir.Model, *, rtol: float | None, atol: float | None) -> Tolerance:
    """Return the tolerance for comparisons with `model`."""
    return Tolerance(
        rtol=rtol,
        atol=atol,
        dtypes=frozenset(dtype.numpy() for dtype in _dtypes(model)),
        reduction_size=reduction_size(model),
    )


def reduction_size(model: ir.Model) -> int:
    """Return the number of terms in the largest sum that the shapes of the weights tell of."""
    return max((_terms(node) for node in _all_nodes(model)), default=1)


def _dtypes(model: ir.Model) -> Iterator[ir.DataType]:
    """Yield the types that are calculated in."""
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype in _ARITHMETIC and _is_calculated_with(value):
            yield value.dtype
    for node in _all_nodes(model):
        dtype = _made_by(node)
        if dtype in _ARITHMETIC and (
            any(map(_is_calculated_with, node.outputs)) or not _is_stored(node.inputs)
        ):
            yield dtype


def _made_by(node: ir.Node) -> ir.DataType | None:
    """Return the type that a Cast or a Constant says."""
    if node.op_type == "Constant" and "value" in node.attributes:
        given = node.attributes["value"]
        return None if given.is_ref() else given.as_tensor().dtype
    target = node.attributes.get("to") if node.op_type == "Cast" else None
    if target is None or target.type != ir.AttributeType.INT or target.is_ref():
        return None
    return ir.DataType(target.as_int())


def _is_stored(values: Iterable[ir.Value | None]) -> bool:
    """Whether values are weights, as they are in the file or moved about."""
    for value in values:
        if value is None or value.is_initializer():
            continue
        node = value.producer()
        moved = node is not None and node.op_type in (*_MOVING, *_CASTING)
        if node is None or not (moved or node.op_type == "Constant") or not _is_stored(node.inputs):
            return False
    return True


def _is_calculated_with(value: ir.Value) -> bool:
    """Whether more is done with a value than to store it, move it about and cast it."""
    for usage in value.uses():
        node = usage.node
        if node.op_type in _CASTING or (node.op_type == "DequantizeLinear" and usage.idx == 0):
            continue
        if node.op_type not in _MOVING or any(map(_is_calculated_with, node.outputs)):
            return True
    return False


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    graphs: Iterable[ir.Graph | ir.Function] = (model.graph, *model.functions.values())
    for graph in graphs:
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _terms(node: ir.Node) -> int:
    shape = _weight_shape(node.inputs[1]) if len(node.inputs) > 1 else ()
    if node.op_type in _CONVOLUTIONS and len(shape) > 2:
        channels = shape[1] if node.op_type == "Conv" else shape[0]
        return max(1, channels * math.prod(shape[2:]))
    if node.op_type == "Gemm" and len(shape) == 2:
        return max(1, shape[node.attributes.get_int("transB", 0)])
    if node.op_type == "MatMul" and shape:
        return max(1, shape[-2] if len(shape) > 1 else shape[0])
    return 1


def _weight_shape(value: ir.Value | None) -> tuple[int, ...]:
    if value is None:
        return ()
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    producer = value.producer()
    if producer is not None and producer.op_type == "ConstantOfShape":
        filled = producer.inputs[0]
        tensor = None if filled is None else ir.convenience.get_const_tensor(filled)
        return () if tensor is None else tuple(int(size) for size in tensor.numpy())
    return ()
