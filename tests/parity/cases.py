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
        center: Whether the layer has a beta.
        scale: Whether the layer has a gamma.
        keywords: Further arguments of the layer, by Keras' names; a parameter that has an
            initializer there begins with its values.
        call: What is False of the layer (`trainable`, `synchronized`) or of its call (`training`).
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
    center: bool = True
    scale: bool = True
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    call: dict[str, Any] = dataclasses.field(default_factory=dict)

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


def parameter_cases(kind: Kind, replicas: int) -> list[Case]:
    """Return configurations that each set some of the layer's parameters."""
    random = np.random.default_rng([7, KINDS.index(kind), replicas])
    settings: list[dict[str, Any]] = [
        {"center": False},
        {"scale": False},
        {"center": False, "scale": False},
        {"keywords": {"beta_initializer": _constant(0.25)}},
        {"keywords": {"gamma_initializer": _constant(1.5)}},
        {"keywords": {"moving_mean_initializer": "ones"}},
        {"keywords": {"moving_variance_initializer": _constant(3.0)}},
        {
            "keywords": {
                "beta_initializer": "zeros",
                "gamma_initializer": "ones",
                "moving_mean_initializer": "zeros",
                "moving_variance_initializer": "ones",
            }
        },
        {"keywords": {"gamma_regularizer": {"class_name": "L1", "config": {"l1": 0.02}}}},
        {"keywords": {"beta_regularizer": {"class_name": "L2", "config": {"l2": 0.03}}}},
        {
            "keywords": {
                "beta_regularizer": "l1",
                "gamma_regularizer": {"class_name": "L1L2", "config": {"l1": 0.1, "l2": 0.2}},
            }
        },
        {"center": False, "keywords": {"beta_regularizer": "l2", "gamma_regularizer": "l2"}},
    ]
    return [
        Case(
            seed=number,
            pieces=_pieces(random, replicas, uneven=True),
            channels=5,
            spatial=(3,),
            axis=1,
            dtype="float32",
            epsilon=1e-3,
            momentum=0.7,
            ratio=0.5,
            **setting,
        )
        for number, setting in enumerate(settings)
    ]


def _constant(value: float) -> dict[str, Any]:
    return {"class_name": "Constant", "config": {"value": value}}


def _pieces(random: np.random.Generator, replicas: int, uneven: bool) -> tuple[int, ...]:
    """Deal at least 12 samples; no piece is empty, which tf_keras cannot take."""
    if not uneven:
        return (int(random.integers(16 // replicas, 32 // replicas)),) * replicas
    sizes = random.integers(1, 8, size=replicas)
    sizes[random.integers(replicas)] += 12
    return tuple(int(size) for size in sizes)
