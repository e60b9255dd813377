"""Layers of Keras 3 or tf_keras that draw random numbers in training: Dropout, noise, augmentation.

In inference they pass on what comes in. The import keeps those that the training step can draw
again (see `passes/switch_randomness_on.py`) as nodes that say what they do; of the others a remark
names the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_DRAWN = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianDropout",
    "GaussianNoise",
)
_LEFT_OUT = ("AlphaDropout", "RandomApply", "Pipeline", "RandAugment", "MixUp", "CutMix", "AugMix")
_DROPPING_ARGUMENTS = ("dropout", "recurrent_dropout", "_dropout")


def kinds(library: Any) -> dict[str, type]:
    """Return the layers that the training step draws again, by name of their class."""
    return {name: getattr(library.layers, name) for name in _DRAWN}


def owners(library: Any) -> Iterator[type]:
    """Yield the classes that hold the `call` of these layers, each once."""
    found = {}
    for kind in kinds(library).values():
        owner = next(base for base in kind.__mro__ if "call" in vars(base))
        found[id(owner)] = owner
    yield from found.values()


def draw_of(layer: Any, rank: int) -> dict[str, Any] | None:
    """Return what a layer draws in training; None where it draws nothing.

    Args:
        layer: A layer of one of `kinds`.
        rank: Number of axes of its input.

    Returns:
        `kind`: `dropout`, `gaussian_dropout` or `gaussian_noise`; `rate` or `stddev`; of Dropout
        with a noise shape, `shared`: the axes along which one draw counts for all.

    Raises:
        ValueError: if its noise shape has a fixed size that is not 1.
    """
    name = type(layer).__name__
    if hasattr(layer, "stddev"):
        return {"kind": "gaussian_noise", "stddev": float(layer.stddev)} if layer.stddev else None
    rate = float(layer.rate)
    if not rate:
        return None
    if "Gaussian" in name:
        return {"kind": "gaussian_dropout", "rate": rate}
    shared = _shared_axes(layer, rank)
    return {"kind": "dropout", "rate": rate, **({"shared": shared} if shared else {})}


def _shared_axes(layer: Any, rank: int) -> list[int]:
    names = {kind.__name__ for kind in type(layer).__mro__}
    dimensions = next((d for d in (1, 2, 3) if f"SpatialDropout{d}D" in names), None)
    if dimensions is not None:
        first = getattr(layer, "data_format", None) == "channels_first"
        return [at + (2 if first else 1) for at in range(dimensions)]
    shape = getattr(layer, "noise_shape", None)
    if shape is None:
        return []
    return [at for at, size in enumerate(shape) if size == 1 and at < rank]


def remarks_of(model: Any, library: Any) -> list[str]:
    """Return a sentence for each layer whose randomness is left out of training."""
    drawn = tuple(kinds(library).values())
    remarks = []
    for layer in model._flatten_layers():
        name = type(layer).__name__
        if isinstance(layer, drawn):
            continue
        augments = name in _LEFT_OUT or (
            name.startswith("Random") and type(layer).__module__.split(".")[0] in _LIBRARIES
        )
        if augments:
            remarks.append(
                f"layer '{layer.name}' ({name}) changes its input at random in Keras' training, "
                "and passes it on here; do that to the data"
            )
        elif any(_rate(layer, argument) for argument in _DROPPING_ARGUMENTS):
            remarks.append(
                f"layer '{layer.name}' ({name}): its own dropout is left out of training"
            )
    return remarks


_LIBRARIES = ("keras", "tf_keras")


def _rate(layer: Any, argument: str) -> bool:
    value = getattr(layer, argument, None)
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
