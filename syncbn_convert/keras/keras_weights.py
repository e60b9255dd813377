"""What Keras 3 or tf_keras knows of the weights of a model beside their values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from syncbn_convert.errors import UsageError
from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.options.keras_objects.constraints import constraint_of
from syncbn_convert.options.keras_objects.regularizers import regularizer_of

UNTRAINED = "trainable=False in Keras, and trained only if it is named"
_OF_NORMALIZATION = ("gamma", "beta", "moving_mean", "moving_variance")
"""Their regularizers and constraints are options of the layer."""


def facts_of(model: Any) -> dict[int, WeightFacts]:
    """Return facts by the `id` of TensorFlow's variable."""
    trained = {id(_backend(variable)) for variable in model.trainable_variables}
    found = {
        id(_backend(variable)): WeightFacts(
            untrained="" if id(_backend(variable)) in trained else UNTRAINED
        )
        for variable in model.variables
    }
    for _, variable, regularizer, constraint in _regulated(model):
        key = id(_backend(variable))
        axes, plain = _without_axis(constraint, len(variable.shape))
        found[key] = WeightFacts(
            untrained=found[key].untrained if key in found else "",
            regularizer=_known(regularizer, regularizer_of),
            constraint=plain if _known(plain, constraint_of) else None,
            axes=axes,
        )
    return found


def remarks_of(model: Any) -> list[str]:
    """Return what of the training of a model is left out, a sentence for each layer."""
    remarks = []
    for layer, variable, regularizer, constraint in _regulated(model):
        _, plain = _without_axis(constraint, len(variable.shape))
        for kind, given, config, of in (
            ("regularizer", regularizer, regularizer, regularizer_of),
            ("constraint", constraint, plain, constraint_of),
        ):
            if given is not None and _known(config, of) is None:
                remarks.append(
                    f"layer '{layer.name}': {kind} {given['class_name']} is unknown here, and left "
                    "out of training"
                )
    remarks.extend(
        f"layer '{layer.name}': its activity_regularizer is left out of training; add the penalty "
        "to the model's own loss"
        for layer in _layers(model)
        if getattr(layer, "activity_regularizer", None) is not None
    )
    return remarks


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers())


def _regulated(
    model: Any,
) -> Iterator[tuple[Any, Any, dict[str, Any] | None, dict[str, Any] | None]]:
    """Yield layer, variable, regularizer and constraint of weights that have either."""
    seen: set[int] = set()
    for layer in _layers(model):
        for variable in getattr(layer, "_trainable_variables", None) or _own_weights(layer):
            name = _name(variable)
            if id(variable) in seen or (
                name in _OF_NORMALIZATION and hasattr(layer, "moving_mean")
            ):
                continue
            seen.add(id(variable))
            regularizer = _config(getattr(variable, "regularizer", None) or _of(layer, variable))
            constraint = _config(getattr(variable, "constraint", None))
            if regularizer is not None or constraint is not None:
                yield layer, variable, regularizer, constraint


def _own_weights(layer: Any) -> list[Any]:
    """Return the variables of a layer of tf_keras itself, not those of its parts."""
    return [
        *(getattr(layer, "_trainable_weights", None) or ()),
        *(getattr(layer, "_non_trainable_weights", None) or ()),
    ]


def _of(layer: Any, variable: Any) -> Any:
    """Return the regularizer that a layer of tf_keras has for a variable."""
    return getattr(layer, f"{_name(variable)}_regularizer", None)


def _name(variable: Any) -> str:
    text = str(getattr(variable, "path", None) or variable.name)
    return text.partition(":")[0].rpartition("/")[2]


def _config(made: Any) -> dict[str, Any] | None:
    if made is None:
        return None
    config = made.get_config() if hasattr(made, "get_config") else {}
    plain = {key: _plain(value) for key, value in config.items()}
    return {"class_name": type(made).__name__, "config": plain}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else value


def _without_axis(
    constraint: dict[str, Any] | None, rank: int
) -> tuple[tuple[int, ...], dict[str, Any] | None]:
    if constraint is None:
        return (), None
    config = dict(constraint["config"])
    axis = config.pop("axis", None)
    axes = () if axis is None else axis if isinstance(axis, list) else [axis]
    return tuple(at % rank for at in axes), {**constraint, "config": config}


def _known(config: dict[str, Any] | None, make: Any) -> dict[str, Any] | None:
    """Return a configuration that can be made here, else None."""
    if config is None:
        return None
    try:
        make(config)
    except UsageError:
        return None
    return config


def _backend(variable: Any) -> Any:
    """Return TensorFlow's variable of one of Keras."""
    return getattr(variable, "value", variable) if hasattr(variable, "path") else variable
