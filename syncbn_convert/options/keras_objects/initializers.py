"""Keras' initializers for parameters of shape [C].

A vector's fan in and fan out are both C, as in Keras. Formulas and defaults are those of
`keras.initializers`; the random numbers are NumPy's, so values equal Keras' in distribution, not in
bits.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import UsageError
from syncbn_convert.options.keras_objects.configs import read_config, require_number

Float64 = npt.NDArray[np.float64]
Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["truncated_normal", "untruncated_normal", "uniform"]

_TRUNCATION = 2.0
"""Standard deviations at which truncated normal distributions end."""
_TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of the standard normal distribution that is truncated there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initializer(ABC):
    """Makes the values of a parameter."""

    @abstractmethod
    def __call__(self, channels: int, seed: Sequence[int] = (0,)) -> Float64:
        """Return float64 [channels]; `seed` is for random values whose own seed is None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros(Initializer):
    """All 0."""

    def __call__(self, channels: int, seed: Sequence[int] = (0,)) -> Float64:
        """Return float64 [channels]."""
        del seed
        return np.zeros(channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ones(Initializer):
    """All 1."""

    def __call__(self, channels: int, seed: Sequence[int] = (0,)) -> Float64:
        """Return float64 [channels]."""
        del seed
        return np.ones(channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Initializer):
    """All `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        require_number(self, "value")

    def __call__(self, channels: int, seed: Sequence[int] = (0,)) -> Float64:
        """Return float64 [channels]."""
        del seed
        return np.full(channels, float(self.value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Random(Initializer):
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse a seed that is none, and options that are no numbers."""
        if self.seed is not None and (not isinstance(self.seed, int) or self.seed < 0):
            raise UsageError(
                f"{type(self).__name__}: seed {self.seed!r} is not a whole number >= 0"
            )
        for field in dataclasses.fields(self):
            if field.type == "float":
                require_number(self, field.name)

    def __call__(self, channels: int, seed: Sequence[int] = (0,)) -> Float64:
        """Return float64 [channels]."""
        generator = np.random.default_rng(list(seed) if self.seed is None else self.seed)
        return self._draw(channels, generator)

    @abstractmethod
    def _draw(self, channels: int, generator: np.random.Generator) -> Float64: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomNormal(_Random):
    """Normal distribution."""

    mean: float = 0.0
    stddev: float = 0.05

    def _draw(self, channels: int, generator: np.random.Generator) -> Float64:
        return generator.standard_normal(channels) * self.stddev + self.mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomUniform(_Random):
    """Uniform distribution."""

    minval: float = -0.05
    maxval: float = 0.05

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        super().__post_init__()
        if self.minval > self.maxval:
            raise UsageError(f"RandomUniform: minval {self.minval} is above maxval {self.maxval}")

    def _draw(self, channels: int, generator: np.random.Generator) -> Float64:
        return generator.uniform(self.minval, self.maxval, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedNormal(_Random):
    """Normal distribution without what is beyond two standard deviations."""

    mean: float = 0.0
    stddev: float = 0.05

    def _draw(self, channels: int, generator: np.random.Generator) -> Float64:
        return _truncated_normal(channels, generator) * self.stddev + self.mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceScaling(_Random):
    """Distribution of variance `scale` / C."""

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Distribution = "truncated_normal"

    def __post_init__(self) -> None:
        """Refuse what Keras refuses."""
        super().__post_init__()
        if self.scale <= 0:
            raise UsageError(f"VarianceScaling: scale {self.scale} is not above 0")
        if self.mode not in get_args(Mode):
            raise UsageError(f"VarianceScaling: mode '{self.mode}' is none of {get_args(Mode)}")
        if self.distribution not in (*get_args(Distribution), "normal"):
            raise UsageError(
                f"VarianceScaling: distribution '{self.distribution}' is none of "
                f"{get_args(Distribution)}"
            )

    def _draw(self, channels: int, generator: np.random.Generator) -> Float64:
        variance = self.scale / max(1.0, channels)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return generator.uniform(-limit, limit, channels)
        if self.distribution == "untruncated_normal":
            return generator.standard_normal(channels) * math.sqrt(variance)
        stddev = math.sqrt(variance) / _TRUNCATED_STDDEV
        return _truncated_normal(channels, generator) * stddev


def _truncated_normal(channels: int, generator: np.random.Generator) -> Float64:
    values = generator.standard_normal(channels)
    while (beyond := np.abs(values) > _TRUNCATION).any():
        values[beyond] = generator.standard_normal(int(beyond.sum()))
    return values


def _scaling(scale: float, mode: Mode, distribution: Distribution) -> Callable[..., Initializer]:
    """Return a child of VarianceScaling, which takes only a seed."""

    def make(seed: int | None = None) -> Initializer:
        return VarianceScaling(scale=scale, mode=mode, distribution=distribution, seed=seed)

    return make


INITIALIZERS: dict[str, Callable[..., Initializer]] = {
    "Zeros": Zeros,
    "Ones": Ones,
    "Constant": Constant,
    "RandomNormal": RandomNormal,
    "RandomUniform": RandomUniform,
    "TruncatedNormal": TruncatedNormal,
    "VarianceScaling": VarianceScaling,
    "GlorotNormal": _scaling(1.0, "fan_avg", "truncated_normal"),
    "GlorotUniform": _scaling(1.0, "fan_avg", "uniform"),
    "HeNormal": _scaling(2.0, "fan_in", "truncated_normal"),
    "HeUniform": _scaling(2.0, "fan_in", "uniform"),
    "LecunNormal": _scaling(1.0, "fan_in", "truncated_normal"),
    "LecunUniform": _scaling(1.0, "fan_in", "uniform"),
}
"""By the name of Keras' class."""

_ALIASES: dict[str, Callable[..., Initializer]] = {
    "zero": Zeros,
    "one": Ones,
    "normal": RandomNormal,
    "uniform": RandomUniform,
}


def initializer_of(given: Any) -> Initializer:
    """Return the initializer that a name, a number (Constant) or a configuration describes.

    Raises:
        UsageError: if it is unknown or its options are.
    """
    if isinstance(given, Initializer):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return Constant(value=given)
    return read_config(given, {**INITIALIZERS, **_ALIASES}, "initializer")
