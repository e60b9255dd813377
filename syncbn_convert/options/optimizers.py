"""The optimizers, with the defaults and meanings that Keras gives them."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

from cyclopts import Parameter

from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups
from syncbn_convert.options.patterns import Patterns, check_patterns

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What every optimizer has.

    Attributes:
        no_decay: Regular expressions; parameters in whose name one is found have no weight decay.
        decay_kernels_only: Whether parameters of fewer than two axes, as biases and those of
            normalizations are, have no weight decay.
        clip_norm: Largest norm of all gradients together, over all replicas; larger ones are
            scaled down to it. None for any.
    """

    no_decay: tuple[str, ...] = ()
    decay_kernels_only: bool = False
    clip_norm: float | None = None

    def _check_common(self, weight_decay: float | None) -> None:
        check_patterns(self.no_decay)
        _check_weight_decay(weight_decay)
        if weight_decay is None and (self.no_decay or self.decay_kernels_only):
            raise UsageError("parameters are left out of a weight decay that there is not; give it")
        clip = self.clip_norm
        if clip is not None and not (math.isfinite(clip) and clip > 0):
            raise UsageError(f"clip norm {clip:g}: give a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(Common):
    """Gradient descent: `m = m * momentum - g * lr`, `w = w + m`.

    Attributes:
        momentum: Share of the last change that goes on; 0 keeps none.
        nesterov: Whether to look ahead: `w = w + m * momentum - g * lr`.
        weight_decay: `w = w - w * weight_decay * lr` before the update; None for no decay.
    """

    name: ClassVar[OptimizerName] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        _check_share("momentum", self.momentum)
        self._check_common(self.weight_decay)
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov looks ahead along the momentum; give a momentum above 0")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for each parameter."""
        return ("momentum",) if self.momentum else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Common):
    """Adam: mean and mean square of the gradients, corrected for their start at 0.

    Attributes:
        beta_1: Share that the mean keeps.
        beta_2: Share that the mean square keeps.
        epsilon: Added to the root of the mean square.
        weight_decay: `w = w - w * weight_decay * lr` before the update; None for no decay.
    """

    name: ClassVar[OptimizerName] = "adam"
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        _check_share("beta_1", self.beta_1)
        _check_share("beta_2", self.beta_2)
        self._check_common(self.weight_decay)
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise UsageError(f"epsilon {self.epsilon:g}: give a number from 0 up")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for each parameter."""
        return ("momentum", "velocity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with weight decay."""

    name: ClassVar[OptimizerName] = "adamw"
    weight_decay: float | None = 0.004


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSprop(Common):
    """Gradients over the root of their mean square: `m = m * momentum + g * lr / sqrt(v + eps)`.

    Attributes:
        rho: Share that the mean square keeps.
        momentum: Share of the last change that goes on; 0 keeps none.
        epsilon: Added to the mean square inside the root.
        weight_decay: `w = w - w * weight_decay * lr` before the update; None for no decay.
    """

    name: ClassVar[OptimizerName] = "rmsprop"
    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        _check_share("rho", self.rho)
        _check_share("momentum", self.momentum)
        self._check_common(self.weight_decay)
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise UsageError(f"epsilon {self.epsilon:g}: give a number from 0 up")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of what is kept for each parameter."""
        return ("velocity", "momentum") if self.momentum else ("velocity",)


Optimizer = Sgd | Adam | RMSprop

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (Sgd, Adam, AdamW, RMSprop)}


def optimizer_from(name: str, **given: Any) -> Optimizer:
    """Return an optimizer by name; options that are None keep their defaults.

    Raises:
        UsageError: if there is no such optimizer, or it has no such option.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"optimizer '{name}': choose {', '.join(OPTIMIZERS)}")
    options = {key: value for key, value in given.items() if value is not None}
    known = {field.name for field in dataclasses.fields(OPTIMIZERS[name])}
    for key in options:
        if key not in known:
            raise UsageError(f"the optimizer {name} has no {key.replace('_', ' ')}; leave it out")
    return OPTIMIZERS[name](**options)


@Parameter(name="*", group=groups.OPTIMIZER)
@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerFlags:
    """An optimizer by name, with the options that differ from its defaults.

    Attributes:
        optimizer: Whose formulas, as Keras has them.
        momentum: Of sgd, rmsprop: share of the last change that goes on (0).
        nesterov: Of sgd: look ahead along the momentum.
        beta_1: Of adam, adamw: decay of the mean (0.9).
        beta_2: Of adam, adamw: decay of the square (0.999).
        rho: Of rmsprop: decay of the square (0.9).
        epsilon: Of adam, adamw: added to the root; of rmsprop, inside it (1e-7).
        weight_decay: Shrink parameters by X times the rate (none; adamw 0.004).
        no_decay: But not those in whose name REGEX is found (repeatable).
        decay_kernels_only: But not biases and parameters of normalizations, of fewer than two axes.
        clip_norm: Scale the gradients down to this norm of all of them together.
    """

    optimizer: OptimizerName = "sgd"
    momentum: Annotated[float | None, Parameter(metavar="M")] = None
    nesterov: Annotated[bool | None, Parameter(negative=())] = None
    beta_1: Annotated[float | None, Parameter(name="--beta-one", metavar="B")] = None
    beta_2: Annotated[float | None, Parameter(name="--beta-two", metavar="B")] = None
    rho: Annotated[float | None, Parameter(metavar="B")] = None
    epsilon: Annotated[float | None, Parameter(name="--adam-epsilon", metavar="X")] = None
    weight_decay: Annotated[float | None, Parameter(metavar="X")] = None
    no_decay: Patterns = ()
    decay_kernels_only: Annotated[bool, Parameter(negative=())] = False
    clip_norm: Annotated[float | None, Parameter(metavar="X")] = None

    def build(self) -> Optimizer:
        """Return the optimizer.

        Raises:
            UsageError: if it has no such option, or the option is out of range.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return optimizer_from(given.pop("optimizer"), **given)


def describe(optimizer: Optimizer) -> dict[str, Any]:
    """Return name and options, as JSON has them; those of all optimizers where they are given."""
    common = {field.name: field.default for field in dataclasses.fields(Common)}
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(optimizer).items()
        if name not in common or value != common[name]
    }
    return {"name": optimizer.name, **given}


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} {value:g}: give a share from 0 up to, but not including, 1")


def _check_weight_decay(value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise UsageError(f"weight decay {value:g}: give a number from 0 up")
