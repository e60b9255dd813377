"""What is known of a normalization layer of which a graph holds only the form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from syncbn_convert.frontends.graph_forms import Form
from syncbn_convert.frontends.layers import Layer, Parameter, variable_path

MOMENTUM = 0.99
"""Keras' default."""
_REMARK = (
    f"the momentum of layers is not in the SavedModel: Keras' default of {MOMENTUM} is taken where "
    "--momentum does not say otherwise"
)
_FROZEN = "trainable=False in the SavedModel: stays in inference mode"


class FormLayers:
    """The layers of a graph: those that are known, and those that forms tell of.

    Attributes:
        layers: The layers, by index.
    """

    def __init__(self, layers: Mapping[int, Layer], variables: Mapping[str, Any]) -> None:
        self.layers = dict(layers)
        self._variables = variables
        self._indices: dict[tuple[tuple[str, int], ...], int] = {}

    def index_of(self, form: Form) -> int:
        """Return the index of a form's layer; forms on the same variables are one layer."""
        own = {name: self._variables[node] for name, node in form.parameters.items()}
        key = tuple(sorted((name, id(variable)) for name, variable in own.items()))
        if key not in self._indices:
            self._indices[key] = len(self.layers)
            self.layers[len(self.layers)] = _layer(form, own)
        return self._indices[key]


def _layer(form: Form, variables: Mapping[str, Any]) -> Layer:
    parameters = {
        name: Parameter(
            path=variable_path(variable), value=np.asarray(variable.numpy()).reshape(-1)
        )
        for name, variable in variables.items()
    }
    learned = [variables[name] for name in ("gamma", "beta") if name in variables]
    frozen = bool(learned) and not any(variable.trainable for variable in learned)
    moving = parameters["moving_variance"].path
    return Layer(
        path=moving.rpartition("/")[0] or moving,
        epsilon=form.epsilon,
        momentum=MOMENTUM,
        parameters=parameters,
        kept_because=_FROZEN if frozen else "",
        options={"variance": "unbiased"} if form.fused else {},
        remarks=(_REMARK,),
    )
