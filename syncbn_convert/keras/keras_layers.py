"""A normalization layer of Keras 3 or tf_keras, read into the same words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from syncbn_convert.errors import UsageError
from syncbn_convert.options.layers import SyncBatchNormalizationOptions

Array = npt.NDArray[Any]

PARAMETERS = ("gamma", "beta", "moving_mean", "moving_variance")
"""Of a layer, in the order of BatchNormalization's inputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasVariable:
    """A variable of a layer.

    Attributes:
        path: Its path in Keras, such as `block/bn/gamma`.
        value: Its value [C].
        trained: Whether Keras trains it.
    """

    path: str
    value: Array
    trained: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasLayer:
    """A normalization layer.

    Attributes:
        path: Its path in Keras, with which the paths of its variables begin.
        epsilon: Added to the variance inside the root.
        momentum: Share of the old moving statistic that an update keeps.
        parameters: Its variables by name; gamma and beta are missing where it has none.
        kept_because: Why it has to stay in inference mode; empty where it need not.
        options: What it has beside that, as `SyncBatchNormalizationOptions` name it.
        remarks: What a user should know about it.
    """

    path: str
    epsilon: float
    momentum: float
    parameters: dict[str, KerasVariable]
    kept_because: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def is_normalization(layer: Any, library: Any) -> bool:
    """Whether a layer of Keras 3 or tf_keras is a batch normalization."""
    kinds = [library.layers.BatchNormalization]
    if hasattr(library.layers, "experimental"):
        kinds.append(library.layers.experimental.SyncBatchNormalization)
    return isinstance(layer, tuple(kinds))


def read_layer(layer: Any, library: Any, *, masked: bool, inferring: bool = False) -> KerasLayer:
    """Describe a built layer.

    Args:
        layer: The layer.
        library: Keras 3 or tf_keras, whichever it is of.
        masked: Whether it is called with a mask.
        inferring: Whether the model calls it with training=False.
    """
    trained = {id(variable) for variable in layer.trainable_variables}
    parameters = {
        name: KerasVariable(
            path=variable_path(variable),
            value=np.asarray(variable.numpy()).reshape(-1),
            trained=id(variable) in trained,
        )
        for name in PARAMETERS
        if (variable := getattr(layer, name)) is not None
    }
    path = parameters["moving_mean"].path.rpartition("/")[0] or str(layer.name)
    options, remarks = _options(layer, library, path)
    return KerasLayer(
        path=path,
        epsilon=float(layer.epsilon),
        momentum=float(layer.momentum),
        parameters=parameters,
        kept_because=_reason_to_keep(layer, masked, inferring),
        options=options,
        remarks=remarks,
    )


def variable_path(variable: Any) -> str:
    """Return the path of a variable, of Keras 3, tf_keras or TensorFlow."""
    return str(getattr(variable, "path", None) or variable.name).partition(":")[0]


def _reason_to_keep(layer: Any, masked: bool, inferring: bool) -> str:
    if masked:
        return "called with a mask, which leaves samples out of the statistics"
    if getattr(layer, "renorm", False):
        return "renorm=True corrects the statistics of the batch by the moving ones"
    if getattr(layer, "virtual_batch_size", None):
        return "virtual_batch_size normalizes pieces of the batch apart"
    if not layer.trainable:
        return "trainable=False in Keras: stays in inference mode"
    return "called with training=False: stays in inference mode" if inferring else ""


def _options(layer: Any, library: Any, path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the attributes of a node cannot say, and what cannot be said at all."""
    options: dict[str, Any] = {}
    remarks: list[str] = []
    if getattr(layer, "fused", False) and not getattr(layer, "synchronized", False):
        options["variance"] = "unbiased"
    for parameter in ("gamma", "beta"):
        for kind in ("regularizer", "constraint"):
            field = f"{parameter}_{kind}"
            given = getattr(layer, field, None)
            if given is None:
                continue
            config = getattr(library, f"{kind}s").serialize(given)
            try:
                SyncBatchNormalizationOptions(**{field: config})
            except UsageError:
                name = type(given).__name__
                remarks.append(
                    f"layer '{path}': {field} {name} is unknown here, and not taken over"
                )
            else:
                options[field] = config
    return options, tuple(remarks)
