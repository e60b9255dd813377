"""The layers of a training form: calls that share one state."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs, module_names


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a training form.

    Attributes:
        name: Name of its first node.
        mean: Name of its moving mean.
        var: Name of its moving variance.
        channels: Number of channels.
        momentum: Share of the old moving statistic that an update keeps.
        epsilon: Added to the variance inside the root.
        unbiased: Whether the moving variance is that of N - 1.
        calls: Indices of its nodes among the SyncBatchNormalization nodes, in graph order.
        module: Path of the module of PyTorch that it comes from; empty where it is not known.
    """

    name: str
    mean: str
    var: str
    channels: int
    momentum: float
    epsilon: float
    unbiased: bool
    calls: list[int]
    module: str = ""


def layers_of(form: ir.Model) -> list[Layer]:
    """Return the layers in graph order; a call that reads another's output belongs to its layer."""
    layers: dict[str, Layer] = {}
    state_of: dict[int, str] = {}
    for index, node in enumerate(training_form.nodes(form)):
        mean, var = node.inputs[3], node.inputs[4]
        assert mean is not None
        assert var is not None
        state = state_of.get(id(mean), str(mean.name))
        state_of[id(node.outputs[1])] = state
        if state in layers:
            layers[state].calls.append(index)
            continue
        tensor = mean.const_value
        assert tensor is not None
        layers[state] = Layer(
            name=graphs.label(node),
            mean=str(mean.name),
            var=str(var.name),
            channels=tensor.size,
            momentum=node.attributes["momentum"].as_float(),
            epsilon=node.attributes["epsilon"].as_float(),
            unbiased=node.attributes.get_int("unbiased", 0) != 0,
            calls=[index],
            module=module_names.module_of(node),
        )
    return list(layers.values())


def layers_digest(layers: list[Layer]) -> str:
    """Return the SHA-256 of the layers' names and sizes: equal for models of one architecture."""
    described = [[layer.name, layer.mean, layer.var, layer.channels] for layer in layers]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
