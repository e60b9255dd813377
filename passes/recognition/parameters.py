"""The values that the parameters of a match have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.graph import constants
from syncbn_convert.passes.recognition.matching import Match
from syncbn_convert.passes.recognition.roles import Parameter

Float64 = npt.NDArray[np.float64]

UNKNOWN_EPSILON = 1e-3
"""Of a map without a variance: Keras' default; the variance is 1 minus it, so nothing changes."""


def constant_values(match: Match, model: ir.Model) -> tuple[dict[str, Float64], float]:
    """Return the parameters [C] by role, without those of the batch, and epsilon as ONNX has it."""
    roles = match.roles
    epsilon = float(np.float32(UNKNOWN_EPSILON if roles.epsilon is None else roles.epsilon))
    values = {
        "scale": _values(roles.scale, 1.0, match, model),
        "B": _values(roles.bias, 0.0, match, model),
    }
    if not roles.of_batch:
        values["input_mean"] = _values(roles.mean, 0.0, match, model)
        values["input_var"] = _values(roles.variance, 1.0 - epsilon, match, model)
    return values, epsilon


def _values(parameter: Parameter | None, default: float, match: Match, model: ir.Model) -> Float64:
    if parameter is None:
        return np.full(match.channels, default)
    tensor = constants.constant_tensor(parameter.value, model)
    assert tensor is not None
    array = tensor.numpy().astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        result: Float64 = parameter.sign * array**parameter.power
    return result
