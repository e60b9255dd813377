"""What is known of a normalization layer of which a graph holds only the form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from syncbn_convert.keras.graph_forms import GraphForm
from syncbn_convert.keras.keras_layers import (
    KerasLayer,
    KerasVariable,
    is_normalization,
    read_layer,
    variable_path,
)

MOMENTUM = 0.99
"""Keras' default."""
_REMARK = (
    f"momentum and trainable of layers are not in the SavedModel: Keras' defaults {MOMENTUM} and "
    "True are taken where 'syncbn-convert convert' is not told otherwise by --momentum and --freeze"
)
_NUMBER = re.compile(r"_\d+$")


class FormLayers:
    """The layers of a graph: those that are known, and those that forms tell of.

    Attributes:
        layers: The layers, by index.
    """

    def __init__(
        self, layers: Mapping[int, KerasLayer] | None = None, model: Any = None, library: Any = None
    ) -> None:
        """Begin with the layers that are known.

        Args:
            layers: Those that markers stand for, by index.
            model: The model of Keras whose layers forms may be of, if there is one.
            library: What it is a model of.
        """
        self.layers = dict(layers or {})
        self._indices: dict[tuple[tuple[str, int], ...], int] = {}
        self._own = {}
        for layer in model._flatten_layers() if model is not None else ():
            if is_normalization(layer, library) and layer.built:
                self._own[id(layer.moving_variance.handle)] = layer
        self._library = library

    def index_of(self, form: GraphForm, variables: Mapping[str, Any]) -> int:
        """Return the index of a form's layer; forms on the same variables are one layer."""
        own = {name: variables[node] for name, node in form.parameters.items()}
        key = tuple(sorted((name, id(variable)) for name, variable in own.items()))
        if key not in self._indices:
            self._indices[key] = len(self.layers)
            layer = self._own.get(id(own["moving_variance"].handle))
            self.layers[len(self.layers)] = (
                _layer(form, own)
                if layer is None
                else read_layer(layer, self._library, masked=False)
            )
        return self._indices[key]


def _layer(form: GraphForm, variables: Mapping[str, Any]) -> KerasLayer:
    path = _path(form, variable_path(variables["moving_variance"]))
    parameters = {
        name: KerasVariable(
            path="/".join(filter(None, (path, variable_path(variable).rpartition("/")[2]))),
            value=np.asarray(variable.numpy()).reshape(-1),
        )
        for name, variable in variables.items()
    }
    return KerasLayer(
        path=path or parameters["moving_variance"].path,
        epsilon=form.epsilon,
        momentum=MOMENTUM,
        parameters=parameters,
        options={"variance": "unbiased"} if form.fused else {},
        remarks=(_REMARK,),
    )


def _path(form: GraphForm, variable: str) -> str:
    """Return the path of a layer: that of a variable, and the layer's name where it lacks that.

    Variables of a subclassed model of Keras 3 are saved under the model's name alone; operators
    stand in a scope of the layer's name, to which TensorFlow may have added a number.
    """
    path = variable.rpartition("/")[0]
    scope = [part for part in form.output.split("/")[:-1] if part != "batchnorm"]
    name = _NUMBER.sub("", scope[-1]) if scope else ""
    named = path.rpartition("/")[2]
    if not name or named in (name, scope[-1]) or _NUMBER.sub("", named) == name:
        return path
    return f"{path}/{name}" if path else name
