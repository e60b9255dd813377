"""Small valid files that the fuzzer starts from."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
from onnx import helper as oh
from onnx import numpy_helper as onh

import syncbn_convert
from tests.harness import spelling
from tests.models import batchnorm_model, make_layer

_SPELLINGS = (
    "constant_parameters",
    "decomposed_by_tf2onnx",
    "in_function",
    "in_if_body",
    "layer_called_twice",
    "merged_initializers",
    "opset14_training_three_outputs",
    "overridable_scale",
    "returned_running_statistics",
)


def convolutions() -> onnx.ModelProto:
    """Return a model with weights that a normalization is fused into, and biases."""
    random = np.random.default_rng(0)

    def values(*shape: int) -> onnx.TensorProto:
        return onh.from_array(random.uniform(0.5, 1.5, shape).astype(np.float32))

    nodes, tensors = [], []
    x = "x"
    for at, (kind, shape) in enumerate(
        [("Conv", (4, 3, 3, 3)), ("ConvTranspose", (4, 3, 3, 3)), ("Conv", (3, 1, 3, 3))]
    ):
        channels = shape[1] if kind == "ConvTranspose" else shape[0]
        names = [f"{role}{at}" for role in "wcsbmv"]
        for name, size in zip(names, [shape, *[(channels,)] * 5], strict=True):
            tensor = values(*size)
            tensor.name = name
            tensors.append(tensor)
        group = 3 if at == 2 else 1
        nodes.append(oh.make_node(kind, [x, *names[:2]], [f"h{at}"], name=f"conv{at}", group=group))
        nodes.append(
            oh.make_node("BatchNormalization", [f"h{at}", *names[2:]], [f"n{at}"], name=f"bn{at}")
        )
        nodes.append(oh.make_node("Relu", [f"n{at}"], [f"r{at}"], name=f"relu{at}"))
        x = f"r{at}"
    shape_of = [oh.make_tensor_value_info("x", 1, ["n", 3, 9, 9])]
    y = [oh.make_tensor_value_info(x, 1, None)]
    graph = oh.make_graph(nodes, "convolutions", shape_of, y, tensors)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)


@functools.cache
def models() -> Mapping[str, bytes]:
    """Return serialized models by name, training forms among them."""
    found = {name: spelling(name) for name in _SPELLINGS}
    found["convolutions"] = convolutions()
    found["old"] = batchnorm_model(make_layer(3), ["n", 3, 4], opset=9)
    for name in ("layer_called_twice", "merged_initializers", "convolutions"):
        form = syncbn_convert.convert(found[name], verify=False)
        assert isinstance(form, onnx.ModelProto)
        found[f"{name}.form"] = form
    return {name: model.SerializeToString() for name, model in found.items()}
