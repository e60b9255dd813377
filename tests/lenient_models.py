"""A convolutional layer, to be edited into what ONNX Runtime loads and the checker does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

from tests.models import make_layer

FLOAT = onnx.TensorProto.FLOAT
Edit = Callable[[onnx.ModelProto], object]


def convolution(*, training: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Conv and BatchNormalization `norm` of 4 channels, from `x` to `y`; trained if asked."""
    layer = make_layer(4)
    weight = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    outputs = ["h", "mean", "var"] if training else ["h"]
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        oh.make_node("BatchNormalization", ["c", *"sbmv"], outputs, name="norm"),
        oh.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    if training:
        nodes[1].attribute.append(oh.make_attribute("training_mode", 1))
    values = (weight, layer.scale, layer.bias, layer.mean, layer.var)
    graph = oh.make_graph(
        nodes,
        "layer",
        [oh.make_tensor_value_info("x", FLOAT, ["n", 3, 8, 8])],
        [oh.make_tensor_value_info("y", FLOAT, ["n", 4, 8, 8])],
        [onh.from_array(v, n) for v, n in zip(values, "wsbmv", strict=True)],
        value_info=[oh.make_tensor_value_info("c", FLOAT, ["n", 4, 8, 8])],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)


def edited(edit: Edit, *, training: bool = False) -> onnx.ModelProto:
    """The layer, after an edit."""
    model = convolution(training=training)
    edit(model)
    return model
