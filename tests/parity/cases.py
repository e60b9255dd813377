"""Configurations that TensorFlow and the training form both compute, and their data."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tests.oracle import Layer

Array = npt.NDArray[Any]
Kind = Literal["tf_keras", "keras"]

KINDS: tuple[Kind, ...] = ("tf_keras", "keras")
STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One layer, and the pieces of the global batches that it sees.

    Attributes:
        seed: Seed of parameters and data.
        pieces: Number of samples on each replica.
        channels: Number of channels.
        spatial: Sizes of the other axes.
        axis: Channel axis, 1 or -1.
        dtype: Element type of the input; parameters are float32, as Keras keeps them.
        epsilon: Added to the variance inside the root.
        momentum: Share of the old moving statistic that an update keeps.
        ratio: |mean| / standard deviation of the data, at most.
    """

    seed: int
    pieces: tuple[int, ...]
    channels: int
    spatial: tuple[int, ...]
    axis: int
    dtype: Literal["float32", "float16"]
    epsilon: float
    momentum: float
    ratio: float

    def layer(self) -> Layer:
        """Return the layer with its parameters."""
        random = np.random.default_rng([self.seed, 0])
        return Layer(
            scale=random.uniform(0.5, 1.5, self.channels).astype(np.float32),
            bias=random.normal(size=self.channels).astype(np.float32),
            mean=random.normal(size=self.channels).astype(np.float32),
            var=random.uniform(0.5, 2.0, self.channels).astype(np.float32),
            epsilon=self.epsilon,
            momentum=self.momentum,
            axis=self.axis,
        )

    def batches(self) -> list[list[Array]]:
        """Return each step's pieces of the global batch."""
        random = np.random.default_rng([self.seed, 1])
        spread = random.uniform(0.5, 3.0, self.channels)
        centre = spread * random.uniform(0.9, 1.0, self.channels) * self.ratio
        return [
            [self._piece(random, size, centre, spread) for size in self.pieces]
            for _ in range(STEPS)
        ]

    def _piece(self, random: np.random.Generator, size: int, centre: Array, spread: Array) -> Array:
        channels_last = random.normal(size=(size, *self.spatial, self.channels)) * spread + centre
        return np.ascontiguousarray(np.moveaxis(channels_last, -1, self.axis)).astype(self.dtype)


def random_cases(kind: Kind, replicas: int) -> list[Case]:
    """Return 32 configurations: every rank, axis and dtype with even and with uneven pieces."""
    random = np.random.default_rng([KINDS.index(kind), replicas])
    dtypes: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    combinations = itertools.product(range(4), (1, -1), dtypes, (False, True))
    return [
        Case(
            seed=int(random.integers(2**31)),
            pieces=_pieces(random, replicas, uneven),
            channels=int(random.integers(3, 8)),
            spatial=tuple(int(size) for size in random.integers(1, 5, size=spatial_axes)),
            axis=axis,
            dtype=dtype,
            epsilon=float(random.choice([1e-5, 1e-3, 1e-2])),
            momentum=float(random.choice([0.0, 0.5, 0.9, 0.99])),
            ratio=float(random.uniform(-1, 1)),
        )
        for spatial_axes, axis, dtype, uneven in combinations
    ]


def _pieces(random: np.random.Generator, replicas: int, uneven: bool) -> tuple[int, ...]:
    """Deal at least 12 samples; no piece is empty, which tf_keras cannot take."""
    if not uneven:
        return (int(random.integers(16 // replicas, 32 // replicas)),) * replicas
    sizes = random.integers(1, 8, size=replicas)
    sizes[random.integers(replicas)] += 12
    return tuple(int(size) for size in sizes)
