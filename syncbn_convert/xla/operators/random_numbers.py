"""Operators that draw random numbers: from the seed, the step, the node and the replica."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from syncbn_convert.xla.sample_axes import like_first
from syncbn_convert.xla.translations import Array, Call, operator


@operator("Dropout", samples=like_first, known=(2,))
def dropout(
    at: Call, x: Array, ratio: Array | None = None, training: Array | None = None
) -> tuple[Array, Array]:
    """Where the program does not train, or the node does not, the identity."""
    share: Array = np.asarray(0.5, x.dtype) if ratio is None else ratio.astype(x.dtype)
    drops = training is not None and at.run.training
    if isinstance(training, np.ndarray):
        drops = drops and bool(training.any())
    if not drops or (isinstance(share, np.ndarray) and not share.any()):
        return x, jnp.ones(x.shape, bool)
    kept = jax.random.uniform(_key(at), x.shape, np.float32) >= share.astype(np.float32)
    if training is not None and not isinstance(training, np.ndarray):
        kept = kept | ~training
        share = jnp.where(training, share, jnp.zeros((), x.dtype))
    return jnp.where(kept, x / (1 - share), jnp.zeros((), x.dtype)), kept


@operator("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
          samples=like_first)  # fmt: skip
def draw(at: Call, *like: Array) -> Array:
    """Normal and uniform numbers."""
    shape = like[0].shape if like else tuple(at.ints("shape") or ())
    default = ir.DataType.from_numpy(np.dtype(like[0].dtype)) if like else ir.DataType.FLOAT
    dtype = at.dtype(at.integer("dtype", int(default)))
    if "Normal" in at.node.op_type:
        numbers = jax.random.normal(_key(at), shape, np.float32)
        found = numbers * at.real("scale", 1.0) + at.real("mean", 0.0)
    else:
        low, high = at.real("low", 0.0), at.real("high", 1.0)
        found = jax.random.uniform(_key(at), shape, np.float32, low, high)
    return found.astype(dtype)


@operator("Bernoulli", samples=like_first)
def bernoulli(at: Call, x: Array) -> Array:
    """Ones with the probabilities given."""
    drawn = jax.random.uniform(_key(at), x.shape, np.float32) < x.astype(np.float32)
    dtype = at.attributes.get("dtype")
    return drawn.astype(x.dtype if dtype is None else at.dtype(int(dtype)))


def _key(at: Call) -> Any:
    key = at.run.node_key(at.number)
    if key is None:
        raise at.refuse("it draws random numbers, but there is no key", "pass key=")
    return key
