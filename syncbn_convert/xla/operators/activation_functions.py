"""Activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from syncbn_convert.xla.sample_axes import aligned
from syncbn_convert.xla.translations import Array, Call, operator


@operator("Relu", samples=aligned)
def relu(at: Call, x: Array) -> Array:
    """Zero at 0."""
    del at
    return jax.nn.relu(x)


@operator("LeakyRelu", samples=aligned)
def leaky_relu(at: Call, x: Array) -> Array:
    """At 0 that of the negative side."""
    return jnp.where(x > 0, x, x * _of(x, at.real("alpha", 0.01)))


@operator("PRelu", samples=aligned)
def parametric_relu(at: Call, x: Array, slope: Array) -> Array:
    """At 0 that of the negative side."""
    del at
    return jnp.where(x > 0, x, x * slope.astype(x.dtype))


@operator("ThresholdedRelu", samples=aligned)
def thresholded_relu(at: Call, x: Array) -> Array:
    """Zero at the threshold."""
    return jnp.where(x > _of(x, at.real("alpha", 1.0)), x, _of(x, 0.0))


@operator("Elu", kind="wide", samples=aligned)
def elu(at: Call, x: Array) -> Array:
    """At 0 that of the negative side."""
    return jnp.where(x > 0, x, _of(x, at.real("alpha", 1.0)) * jnp.expm1(_negative(x)))


@operator("Selu", kind="wide", samples=aligned)
def selu(at: Call, x: Array) -> Array:
    """At 0 that of the negative side."""
    alpha, gamma = (
        at.real("alpha", 1.67326319217681884765625),
        at.real("gamma", 1.05070102214813232421875),
    )
    return _of(x, gamma) * jnp.where(x > 0, x, _of(x, alpha) * jnp.expm1(_negative(x)))


@operator("Celu", kind="wide", samples=aligned)
def celu(at: Call, x: Array) -> Array:
    """Smooth at 0."""
    alpha = _of(x, at.real("alpha", 1.0))
    return jnp.where(x > 0, x, alpha * jnp.expm1(_negative(x) / alpha))


@operator("Sigmoid", samples=aligned)
def sigmoid(at: Call, x: Array) -> Array:
    """Any input."""
    del at
    return jax.nn.sigmoid(x)


@operator("HardSigmoid", samples=aligned)
def hard_sigmoid(at: Call, x: Array) -> Array:
    """Zero at both kinks."""
    line = _of(x, at.real("alpha", 0.2)) * x + _of(x, at.real("beta", 0.5))
    return jnp.where(line <= 0, _of(x, 0.0), jnp.where(line >= 1, _of(x, 1.0), line))


@operator("HardSwish", samples=aligned)
def hard_swish(at: Call, x: Array) -> Array:
    """Zero at -3 and one at 3."""
    del at
    inside = x * (x / _of(x, 6.0) + _of(x, 0.5))
    return jnp.where(x <= -3, _of(x, 0.0), jnp.where(x >= 3, x, inside))


@operator("Swish", samples=aligned)
def swish(at: Call, x: Array) -> Array:
    """Any alpha."""
    return x * jax.nn.sigmoid(_of(x, at.real("alpha", 1.0)) * x)


@operator("Mish", kind="wide", samples=aligned)
def mish(at: Call, x: Array) -> Array:
    """Any input."""
    del at
    return x * jnp.tanh(jax.nn.softplus(x))


@operator("Softplus", kind="wide", samples=aligned)
def softplus(at: Call, x: Array) -> Array:
    """Any input."""
    del at
    return jax.nn.softplus(x)


@operator("Softsign", samples=aligned)
def softsign(at: Call, x: Array) -> Array:
    """Any input."""
    del at
    return x / (_of(x, 1.0) + jnp.abs(x))


@operator("Gelu", samples=aligned)
def gelu(at: Call, x: Array) -> Array:
    """Exact and tanh."""
    return jax.nn.gelu(x, approximate=at.text("approximate", "none") == "tanh")


@operator("Shrink", samples=aligned)
def shrink(at: Call, x: Array) -> Array:
    """Towards zero by a bias, to zero within a threshold."""
    bias, threshold = _of(x, at.real("bias", 0.0)), _of(x, at.real("lambd", 0.5))
    return jnp.where(x < -threshold, x + bias, jnp.where(x > threshold, x - bias, _of(x, 0.0)))


def _of(x: Array, number: float) -> Array:
    return np.asarray(number, x.dtype)


def _negative(x: Array) -> Array:
    """Return what is below zero, and zero elsewhere, which keeps exponentials finite."""
    return jnp.where(x > 0, _of(x, 0.0), x)
