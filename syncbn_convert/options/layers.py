"""The parameters of `SyncBatchNormalization`, for all layers or by name."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from cyclopts import Parameter

from syncbn_convert.doors.nested_text import parse_json
from syncbn_convert.errors import UsageError
from syncbn_convert.options import groups
from syncbn_convert.options.patterns import check_patterns, matches

if TYPE_CHECKING:
    from cyclopts import Token

Variance = Literal["population", "unbiased"]

_LARGEST = 2.0**62
"""Beyond it, no attribute of ONNX holds a number, and no use of one is known."""
_KERAS_KINDS = ("initializer", "regularizer", "constraint")
_SHOWN = 60


def parse_keras_object(value: str) -> Any:
    """Read a Keras name, a number, or a configuration in JSON.

    Raises:
        UsageError: if it begins like JSON and is not.
    """
    if value.lstrip().startswith("{"):
        try:
            return parse_json(value, dict)
        except ValueError as error:
            raise UsageError(
                f"'{value[:_SHOWN]}' is not JSON that can be read ({error}); write "
                '\'{"class_name": "L2", "config": {"l2": 1e-4}}\''
            ) from error
    try:
        return float(value)
    except ValueError:
        return value


def _convert_keras_object(kind: Any, tokens: Sequence[Token]) -> Any:
    del kind
    return parse_keras_object(tokens[0].value)


KerasObject: TypeAlias = Annotated[
    Any,
    Parameter(converter=_convert_keras_object, n_tokens=1, accepts_keys=False, metavar="KERAS"),
]
_Number: TypeAlias = Annotated[float | None, Parameter(metavar="X")]
_Whole: TypeAlias = Annotated[int | None, Parameter(metavar="N")]


@Parameter(name="*", group=groups.LAYERS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncBatchNormalizationOptions:
    """What becomes of a layer; None leaves a parameter as the node has it.

    Names and meanings are those of `tf.keras.layers.experimental.SyncBatchNormalization`.
    Initializers, regularizers and constraints may be given by Keras' name (`"he_normal"`), by a
    configuration (`{"class_name": "L2", "config": {"l2": 1e-4}}`) or as an object of
    `syncbn_convert.options.keras_objects`; a number is a Constant, or an L2. `pytorch_momentum`
    becomes `momentum`, and reads as None.

    Attributes:
        axis: Channel axis; negative ones count from the last.
        momentum: Share of the old moving statistic that an update keeps.
        pytorch_momentum: One minus the momentum: what PyTorch calls momentum.
        epsilon: Added to the variance inside the root; above 0.
        center: Whether the layer has a beta; without, it is constant 0 and not trained.
        scale: Whether the layer has a gamma; without, it is constant 1 and not trained.
        beta_initializer: New values of beta: a Keras name, a number, or a configuration in JSON.
        gamma_initializer: New values of gamma, likewise.
        moving_mean_initializer: New values of the moving mean, likewise.
        moving_variance_initializer: New values of the moving variance, likewise.
        beta_regularizer: Penalty of beta, added to the output `regularization_loss`; a number is
            an L2.
        gamma_regularizer: Penalty of gamma, likewise.
        beta_constraint: Projection of beta after each of its updates: a Keras name or a
            configuration in JSON.
        gamma_constraint: Projection of gamma, likewise.
        trainable: Whether the layer learns; without, it is in inference mode, statistics untouched.
        training: Whether the layer is in its training form; without, it is in inference form.
        synchronized: Whether replicas share statistics; without, ONNX's own training mode.
        variance: What the moving variance holds: that of N (`population`) or of N - 1 (`unbiased`).
        group_size: Consecutive replicas that share statistics; 0 is all.

    Raises:
        UsageError: if a value is out of range or unknown.
    """

    axis: _Whole = None
    momentum: _Number = None
    pytorch_momentum: _Number = None
    epsilon: _Number = None
    center: bool | None = None
    scale: bool | None = None
    beta_initializer: KerasObject = None
    gamma_initializer: KerasObject = None
    moving_mean_initializer: KerasObject = None
    moving_variance_initializer: KerasObject = None
    beta_regularizer: KerasObject = None
    gamma_regularizer: KerasObject = None
    beta_constraint: KerasObject = None
    gamma_constraint: KerasObject = None
    trainable: bool | None = None
    training: bool | None = None
    synchronized: Annotated[bool | None, Parameter(name="--sync")] = None
    variance: Variance | None = None
    group_size: Annotated[int | None, Parameter(metavar="K")] = None

    def __post_init__(self) -> None:
        """Read names and configurations, and refuse what is out of range."""
        if self.pytorch_momentum is not None:
            object.__setattr__(
                self, "momentum", _from_pytorch(self.pytorch_momentum, self.momentum)
            )
            object.__setattr__(self, "pytorch_momentum", None)
        for name in OPTION_NAMES:
            value = getattr(self, name)
            kind = name.rpartition("_")[2]
            if value is None:
                continue
            if kind in _KERAS_KINDS:
                object.__setattr__(self, name, _keras_object(name, kind, value))
            else:
                _check(name, value)

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


PYTORCH_MOMENTUM = "pytorch_momentum"
OPTION_NAMES = [
    field.name
    for field in dataclasses.fields(SyncBatchNormalizationOptions)
    if field.name != PYTORCH_MOMENTUM
]
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("axis", "group_size"), int),
    **dict.fromkeys(("momentum", "epsilon"), int | float),
    **dict.fromkeys(("center", "scale", "trainable", "training", "synchronized"), bool),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRule:
    """Options of the layers in whose name a pattern is found.

    Attributes:
        pattern: Regular expression, searched in names of nodes and of their modules.
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
        check_patterns([self.pattern])


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

    def of(self, *names: str) -> SyncBatchNormalizationOptions:
        """Return the options of the node that is called by one of `names`."""
        rule = next((rule for rule in self.rules if matches((rule.pattern,), *names)), None)
        return rule.options.over(self.default) if rule else self.default

    @property
    def given(self) -> bool:
        """Whether any option is given."""
        return bool(self.rules) or self.default != SyncBatchNormalizationOptions()


def _keras_object(name: str, kind: str, value: Any) -> Any:
    from syncbn_convert.options import keras_objects

    try:
        return getattr(keras_objects, f"{kind}_of")(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _from_pytorch(pytorch_momentum: Any, momentum: Any) -> float:
    if momentum is not None:
        raise UsageError(
            f"momentum {momentum} and {PYTORCH_MOMENTUM} {pytorch_momentum} are both given; "
            "they are one minus the other, give one"
        )
    if isinstance(pytorch_momentum, bool) or not isinstance(pytorch_momentum, int | float):
        raise UsageError(f"{PYTORCH_MOMENTUM} {pytorch_momentum!r} is not of type float")
    if not 0 <= pytorch_momentum <= 1:
        raise UsageError(f"{PYTORCH_MOMENTUM} {pytorch_momentum:g} is outside [0, 1]")
    return float(1.0 - pytorch_momentum)


def _check(name: str, value: Any) -> None:
    wanted = _TYPES.get(name)
    if wanted is not None and not _is(value, wanted):
        called = "float" if wanted == int | float else wanted.__name__
        raise UsageError(f"{name} {value!r} is not of type {called}")
    if wanted is not None and abs(value) > _LARGEST:
        raise UsageError(f"{name} is far out of range; give a usual number")
    if name == "momentum" and not 0 <= value <= 1:
        raise UsageError(
            f"momentum {value:g} is outside [0, 1]; it is the share of the old moving statistic "
            "that an update keeps"
        )
    if name == "epsilon" and not 0 < _float32(value) < math.inf:
        raise UsageError(
            f"epsilon {value:g} is not above 0 (and finite) in float32; the variance of a channel "
            "may be 0, and its root divides"
        )
    if name == "group_size" and value < 0:
        raise UsageError(f"group_size {value} is below 0; give a number of replicas, or 0 for all")
    if name == "variance" and value not in get_args(Variance):
        raise UsageError(f"variance '{value}' is neither 'population' nor 'unbiased'")


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _is(value: Any, wanted: Any) -> bool:
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
