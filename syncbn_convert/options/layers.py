"""The parameters of `SyncBatchNormalization`, for all layers or by name."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal, get_args

import numpy as np

from syncbn_convert.errors import UsageError
from syncbn_convert.options.keras_objects import (
    Constraint,
    Initializer,
    Regularizer,
    constraint_of,
    initializer_of,
    regularizer_of,
)

Variance = Literal["population", "unbiased"]

_LARGEST = 2.0**62
"""Beyond it, no attribute of ONNX holds a number, and no use of one is known."""
_READERS = {
    "_initializer": initializer_of,
    "_regularizer": regularizer_of,
    "_constraint": constraint_of,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncBatchNormalizationOptions:
    """What becomes of a layer; None leaves a parameter as the node has it.

    Names and meanings are those of `tf.keras.layers.experimental.SyncBatchNormalization`.
    Initializers, regularizers and constraints may be given by Keras' name (`"he_normal"`), by a
    configuration (`{"class_name": "L2", "config": {"l2": 1e-4}}`) or as an object of
    `syncbn_convert.options.keras_objects`; a number is a Constant, or an L2.

    Attributes:
        axis: Channel axis; negative ones count from the last.
        momentum: Share of the old moving statistic that an update keeps (PyTorch: one minus it).
        epsilon: Added to the variance inside the root; above 0.
        center: False drops beta: constant 0, not trainable.
        scale: False drops gamma: constant 1, not trainable.
        beta_initializer: New values of beta.
        gamma_initializer: New values of gamma.
        moving_mean_initializer: New values of the moving mean.
        moving_variance_initializer: New values of the moving variance.
        beta_regularizer: Penalty of beta, added to the output `regularization_loss`.
        gamma_regularizer: Penalty of gamma.
        beta_constraint: Projection of beta after each of its updates.
        gamma_constraint: Projection of gamma.
        trainable: False keeps the layer in inference mode, statistics untouched.
        training: False gives the inference form.
        synchronized: False gives ONNX's own training mode, without collectives.
        variance: What the moving variance holds: that of N (`population`) or of N - 1 (`unbiased`).
        group_size: Consecutive replicas that share statistics; 0 is all.

    Raises:
        UsageError: if a value is out of range or unknown.
    """

    axis: int | None = None
    momentum: float | None = None
    epsilon: float | None = None
    center: bool | None = None
    scale: bool | None = None
    beta_initializer: Initializer | Any = None
    gamma_initializer: Initializer | Any = None
    moving_mean_initializer: Initializer | Any = None
    moving_variance_initializer: Initializer | Any = None
    beta_regularizer: Regularizer | Any = None
    gamma_regularizer: Regularizer | Any = None
    beta_constraint: Constraint | Any = None
    gamma_constraint: Constraint | Any = None
    trainable: bool | None = None
    training: bool | None = None
    synchronized: bool | None = None
    variance: Variance | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Read names and configurations, and refuse what is out of range."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                read = next((_READERS[end] for end in _READERS if field.name.endswith(end)), None)
                if read is not None:
                    object.__setattr__(self, field.name, _named(field.name, read, value))
                else:
                    _check(field.name, str(field.type), value)

    @property
    def channel_axis(self) -> int:
        """The channel axis; 1, as ONNX has it, where none is given."""
        return 1 if self.axis is None else self.axis

    @property
    def frozen(self) -> bool:
        """Whether the layer is to stay in inference mode."""
        return self.trainable is False or self.training is False

    @property
    def changed_roles(self) -> list[str]:
        """The ONNX inputs whose values these options may change: `scale`, `B` and so on."""
        changed = {
            "scale": self.scale is False or self.gamma_initializer is not None,
            "B": self.center is False or self.beta_initializer is not None,
            "input_mean": self.moving_mean_initializer is not None,
            "input_var": self.moving_variance_initializer is not None,
        }
        return [role for role, given in changed.items() if given]

    @property
    def unbiased(self) -> bool:
        """Whether the moving variance is that of N - 1."""
        return self.variance == "unbiased"

    def over(self, other: SyncBatchNormalizationOptions) -> SyncBatchNormalizationOptions:
        """Return these options, and those of `other` where these leave a parameter alone."""
        own = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(other, **own) if own else other


OPTION_NAMES = [field.name for field in dataclasses.fields(SyncBatchNormalizationOptions)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRule:
    """Options of the layers in whose name a pattern is found.

    Attributes:
        pattern: Regular expression, searched in node names.
        options: What becomes of them.
    """

    pattern: str
    options: SyncBatchNormalizationOptions

    def __post_init__(self) -> None:
        """Refuse other types."""
        right = isinstance(self.pattern, str) and isinstance(
            self.options, SyncBatchNormalizationOptions
        )
        if not right:
            raise UsageError(
                f"rule {self.pattern!r}: give a regular expression and "
                "SyncBatchNormalizationOptions"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRules:
    """Options by name.

    Attributes:
        default: What holds where no rule says otherwise.
        rules: The first whose pattern is found in a name counts; it goes before `default`.
        reset: Whether options may change the function that the model computes in inference.
        seed: Of random initializers that have none of their own.
    """

    default: SyncBatchNormalizationOptions = SyncBatchNormalizationOptions()
    rules: tuple[LayerRule, ...] = ()
    reset: bool = False
    seed: int = 0

    def of(self, name: str) -> SyncBatchNormalizationOptions:
        """Return the options of the node of that name."""
        rule = next((rule for rule in self.rules if re.search(rule.pattern, name)), None)
        return rule.options.over(self.default) if rule else self.default

    @property
    def given(self) -> bool:
        """Whether any option is given."""
        return bool(self.rules) or self.default != SyncBatchNormalizationOptions()


def _named(name: str, read: Any, value: Any) -> Any:
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _check(name: str, kind: str, value: Any) -> None:
    wanted = {"bool": bool, "int": int, "float": int | float}.get(kind.partition(" ")[0])
    if wanted is not None and not _is(value, wanted):
        raise UsageError(f"{name} {value!r} is not of type {kind.partition(' ')[0]}")
    if wanted is not None and abs(value) > _LARGEST:
        raise UsageError(f"{name} is far out of range; give a usual number")
    if name == "momentum" and not 0 <= value <= 1:
        raise UsageError(
            f"momentum {value:g} is outside [0, 1]; it is the share of the old moving statistic "
            "that an update keeps"
        )
    if name == "epsilon" and not 0 < float(np.float32(value)) < math.inf:
        raise UsageError(
            f"epsilon {value:g} is not above 0 (and finite) in float32; the variance of a channel "
            "may be 0, and its root divides"
        )
    if name == "group_size" and value < 0:
        raise UsageError(f"group_size {value} is below 0; give a number of replicas, or 0 for all")
    if name == "variance" and value not in get_args(Variance):
        raise UsageError(f"variance '{value}' is neither 'population' nor 'unbiased'")


def _is(value: Any, wanted: Any) -> bool:
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
