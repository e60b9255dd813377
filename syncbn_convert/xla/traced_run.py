"""What a program is traced for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import lax

Array = Any


@dataclasses.dataclass(frozen=True)
class Axis:
    """The mapped axis of the replicas.

    Attributes:
        name: Its name.
        size: Number of replicas.
    """

    name: str
    size: int

    def groups(self, group_size: int) -> list[list[int]] | None:
        """Return consecutive ranks in groups; None where all are one group."""
        if group_size in (0, self.size):
            return None
        return [list(range(first, first + group_size)) for first in range(0, self.size, group_size)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a program is traced for.

    Attributes:
        axis: Where the replicas are mapped; None for one alone.
        key: Of the random numbers; None where none are drawn.
        weights: 1 for each sample of the piece, 0 for padding; None if there is no padding.
        training: Whether nodes normalize by batch statistics, and Dropout drops.
        precision: `float32`, `tf32` or `bfloat16`.
        has_double: Whether the device computes in float64; statistics are then merged in it.
    """

    axis: Axis | None = None
    key: Any = None
    weights: Array | None = None
    training: bool = True
    precision: str = "float32"
    has_double: bool = True

    @property
    def narrow(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.precision == "bfloat16"

    @property
    def product_precision(self) -> Any:
        """What XLA calls the precision of products."""
        if self.precision == "float32":
            return lax.Precision.HIGHEST
        return lax.Precision.HIGH if self.precision == "tf32" else lax.Precision.DEFAULT

    def node_key(self, number: int) -> Any:
        """Return the key of a node's random numbers on this replica, or None."""
        if self.key is None:
            return None
        key = jax.random.fold_in(self.key, number)
        if self.axis is not None:
            key = jax.random.fold_in(key, lax.axis_index(self.axis.name))
        return key

    def all_reduce(self, value: Array, group_size: int) -> Array:
        """Return the sum over replicas; its gradient passes unchanged.

        What follows a sum is computed alike on all replicas, so the gradient of this replica's
        value is that of the sum.
        """
        if self.axis is None:
            return value
        axis, groups = self.axis, self.axis.groups(group_size)

        @jax.custom_vjp
        def summed(own: Array) -> Array:
            return lax.psum(own, axis.name, axis_index_groups=groups)

        summed.defvjp(lambda own: (summed(own), None), lambda _, gradient: (gradient,))
        return summed(value)

    @property
    def wire(self) -> np.dtype[Any]:
        """The element type of statistics between replicas."""
        return np.dtype(np.float64 if self.has_double else np.float32)
