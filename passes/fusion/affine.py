"""x * multiplier + addend per channel, in float64: what an inference-mode normalization is."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.form.batchnorm import MODE_LOST, PARAMETER_ROLES, BatchNorm
from syncbn_convert.graph import constants

Float64 = npt.NDArray[np.float64]

TRAINING_MODE = "it is in training mode"
"""Why a node that has to be folded first is not fused."""


class Refusal(Exception):  # noqa: N818
    """Why something is not fused; never leaves the pass."""


class MapRefusal(Refusal):
    """Why this affine map is not fused, where another one could be."""


class CallRefusal(Refusal):
    """A call of a function, or an operator that ONNX does not have, is in the way.

    Args:
        node: That call.
        role: How it is in the way.
    """

    def __init__(self, node: ir.Node, role: str) -> None:
        super().__init__(f"{role} {node.domain}::{node.op_type}")
        self.callee = node.op_identifier()


@dataclasses.dataclass(frozen=True)
class ChannelAffine:
    """One multiplier and one addend for each channel.

    Attributes:
        multiplier: Float64 [C], or [1] for all channels.
        addend: Float64 of the same shape.
    """

    multiplier: Float64
    addend: Float64

    @property
    def shifts(self) -> bool:
        """Whether any addend is not 0."""
        return bool(np.any(self.addend))

    @property
    def scales(self) -> bool:
        """Whether any multiplier is not 1."""
        return bool(np.any(self.multiplier != 1.0))

    def after(self, first: ChannelAffine) -> ChannelAffine:
        """Return this one applied to the result of `first`."""
        return ChannelAffine(
            *np.broadcast_arrays(
                self.multiplier * first.multiplier, self.multiplier * first.addend + self.addend
            )
        )

    def of(self, channels: int) -> ChannelAffine:
        """Return it with one value for each of `channels`.

        Raises:
            Refusal: if it has another number of them.
        """
        if self.multiplier.size not in (1, channels):
            raise Refusal(f"{self.multiplier.size} channels meet {channels}")
        return ChannelAffine(
            np.broadcast_to(self.multiplier, channels), np.broadcast_to(self.addend, channels)
        )

    def part(self, start: int, end: int) -> ChannelAffine:
        """Return that of channels from `start` up to `end`."""
        if self.multiplier.size == 1:
            return self
        return ChannelAffine(self.multiplier[start:end], self.addend[start:end])


def of_batchnorm(norm: BatchNorm, model: ir.Model) -> ChannelAffine:
    """Return what an inference-mode node computes.

    Raises:
        Refusal: if it is in training mode, or a parameter is not constant or not usable.
    """
    if norm.training_mode:
        raise Refusal(TRAINING_MODE)
    if norm.mode_lost:
        raise Refusal(MODE_LOST)
    if not norm.spatial:
        raise Refusal("spatial=0 normalizes each activation")
    if len(norm.parameters) != len(PARAMETER_ROLES):
        raise Refusal("a parameter is missing")
    values: list[Float64] = []
    for role, value in norm.parameters.items():
        values.append(constant_array(value, model, role))
    scale, bias, mean, var = values
    if len({value.shape for value in values}) != 1 or scale.ndim != 1:
        raise Refusal("its parameters differ in shape")
    with np.errstate(all="ignore"):
        multiplier = scale / np.sqrt(var + np.float64(np.float32(norm.epsilon)))
        addend = bias - mean * multiplier
    if not (np.isfinite(multiplier).all() and np.isfinite(addend).all()):
        raise Refusal("its parameters are not finite, or its variance is negative")
    if (var < 0).any():
        raise Refusal("its moving variance is negative")
    return ChannelAffine(multiplier, addend)


def constant_array(value: ir.Value, model: ir.Model, what: str) -> Float64:
    """Return the float64 values of a parameter.

    Raises:
        Refusal: if a caller may feed it, or it is computed at run time.
    """
    if constants.is_overridable(value, model.ir_version):
        raise Refusal(f"{what} '{value.name}' is an overridable input")
    tensor = constants.constant_tensor(value, model)
    if tensor is None:
        raise Refusal(f"{what} '{value.name}' is computed at run time")
    if not tensor.dtype.is_floating_point():
        raise Refusal(f"{what} '{value.name}' holds whole numbers")
    return tensor.numpy().astype(np.float64)
