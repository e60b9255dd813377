"""Weights of a Keras model under their names in ONNX, where some have another layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph.constants import is_named_constant
from syncbn_convert.keras import sources
from syncbn_convert.keras.graph_match import Named, Pair, match_weights
from syncbn_convert.keras.models import KerasModel
from syncbn_convert.keras.reading import Source
from syncbn_convert.passes import recipes

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

_NUMBERED = ("float32", "float64", "int32", "int64")
"""Element types that hold every whole number below `_BASE`."""
_BASE = 1 << 24


def take_weights(model: ir.Model, trained: Source, name: str = "the model") -> None:
    """Give a model the weights and statistics of a trained Keras model, in place.

    Args:
        model: What was once imported from the Keras model, or from one of its architecture; a
            training form, or in inference form. It comes out in inference form.
        trained: The trained model; imported, so that its weights have the layout of ONNX.
        name: What messages call `model`.

    Raises:
        ConversionError: naming the first difference between the two, or a weight that is not
            finite.
    """
    recipes.to_inference(model)
    pairs = match_weights(Named(trained.model, trained.name), Named(model, name))
    taken: dict[ir.Value, Pair] = {}
    for pair in pairs:
        tensor = pair.tensors[0]
        _require_finite(pair.first, trained.name)
        known = taken.setdefault(pair.second, pair)
        if known is not pair and known.tensors[0].tobytes() != tensor.tobytes():
            raise ConversionError(
                f"'{pair.second.name}' is one constant in {name}, but '{known.first.name}' and "
                f"'{pair.first.name}' in {trained.name}; import the trained model"
            )
        pair.second.const_value = ir.tensor(
            tensor.numpy(), name=str(pair.second.name), dtype=tensor.dtype
        )


def weights_like(keras: KerasModel, model: Named) -> list[Array | None]:
    """Return the values that the variables of `keras` have in `model`, in the order of `weights`.

    The variables are overwritten: how they lie in ONNX is found out by importing the model while
    their elements are numbers that count them.

    Args:
        keras: A model of Keras.
        model: A model in inference form that was imported from it, or from one of its architecture.

    Returns:
        The value of each variable, in its own layout; None where `model` does not hold it.

    Raises:
        ConversionError: naming the first difference between the two.
    """
    old = [np.asarray(variable) for variable in keras.weights]
    starts = np.cumsum([0, *(array.size for array in old)])
    found: list[Array | None] = [None] * len(old)
    for pair, numbers in _numbered(keras, model, old):
        if numbers is None:
            _require_equal(pair, keras, model)
        elif numbers.size:
            _require_finite(pair.second, model.name)
            at = int(np.searchsorted(starts, numbers.flat[0], side="right")) - 1
            new = _placed(pair, numbers - starts[at], old[at])
            known = found[at]
            if known is not None and known.tobytes() != new.tobytes():
                raise ConversionError(
                    f"weight '{pair.first.name}' of {model.name} is read twice, with values that "
                    f"differ, but is one variable in {keras.name}"
                )
            found[at] = new
    return found


def _numbered(
    keras: KerasModel, model: Named, old: list[Array]
) -> Iterator[tuple[Pair, Indices | None]]:
    """Yield what `match_weights` does, with each element's number; None where it has none."""
    counts = np.split(np.arange(sum(a.size for a in old)), np.cumsum([a.size for a in old])[:-1])
    _assign_digits(keras, [count % _BASE for count in counts])
    pairs = match_weights(Named(sources.import_model(keras.model), keras.name), model)
    higher: ir.Graph | None = None
    if counts and sum(map(len, counts)) > _BASE:
        _assign_digits(keras, [count // _BASE for count in counts])
        higher = sources.import_model(keras.model).graph
    for pair in pairs:
        if pair.is_constant or pair.tensors[0].dtype.numpy().name not in _NUMBERED:
            yield pair, None
            continue
        numbers = pair.tensors[0].numpy().astype(np.int64)
        if higher is not None:
            tensor = higher.initializers[str(pair.first.name)].const_value
            assert tensor is not None
            numbers = numbers + _BASE * tensor.numpy().astype(np.int64)
        yield pair, numbers


def _assign_digits(keras: KerasModel, digits: list[Indices]) -> None:
    for variable, values in zip(keras.weights, digits, strict=True):
        array = np.asarray(variable)
        if array.dtype.name in _NUMBERED:
            variable.assign(values.reshape(array.shape).astype(array.dtype))


def _placed(pair: Pair, places: Indices, old: Array) -> Array:
    new = old.copy()
    new.reshape(-1)[places.reshape(-1)] = pair.tensors[1].numpy().reshape(-1)
    return new


def _require_finite(value: ir.Value, name: str) -> None:
    tensor = value.const_value
    if tensor is None or is_named_constant(value) or not tensor.dtype.is_floating_point():
        return
    if not np.all(np.isfinite(tensor.numpy().astype(np.float64))):
        raise ConversionError(
            f"weight '{value.name}' of {name} is not finite; take a training that did not diverge"
        )


def _require_equal(pair: Pair, keras: KerasModel, model: Named) -> None:
    if not pair.equal:
        raise ConversionError(
            f"'{pair.first.name}' differs between {keras.name} and {model.name}, and is no "
            f"variable that can be written; take a model that was imported from {keras.name}"
        )
