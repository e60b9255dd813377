"""Products of matrices."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.translations import Array, Call, operator


@operator("MatMul", kind="narrow", samples=sample_axes.product)
def matmul(at: Call, left: Array, right: Array) -> Array:
    """Vectors, matrices, and batches of them, broadcast."""
    if at.xp is np:
        return np.matmul(left, right)
    return jnp.matmul(left, right, precision=at.precision)


@operator("Gemm", kind="narrow", samples=sample_axes.rows)
def gemm(at: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    """Transposed or not, alpha and beta, C broadcast."""
    a = a.T if at.integer("transA", 0) else a
    b = b.T if at.integer("transB", 0) else b
    product = jnp.matmul(a, b, precision=at.precision)
    alpha, beta = at.real("alpha", 1.0), at.real("beta", 1.0)
    if alpha != 1.0:
        product = product * np.asarray(alpha, product.dtype)
    if c is None:
        return product
    return product + (c * np.asarray(beta, c.dtype) if beta != 1.0 else c)


@operator("Einsum", kind="narrow")
def einsum(at: Call, *operands: Array) -> Array:
    """Any equation."""
    return jnp.einsum(at.text("equation", ""), *operands, precision=at.precision)
