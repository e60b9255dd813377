"""Gradients of trained and well-known models that nobody here made: one step on two replicas."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from tests.gradients import whole_models
from tests.models import light_model, ocr_model

Array = npt.NDArray[Any]

pytestmark = pytest.mark.sweep

PIECES = (slice(0, 2), slice(2, 3))
MODELS = {
    "light_resnet50": (light_model("resnet50"), [3, 224, 224]),
    "light_inception_v2": (light_model("inception_v2"), [3, 224, 224]),
    "light_densenet121": (light_model("densenet121"), [3, 224, 224]),
    "light_shufflenet": (light_model("shufflenet"), [3, 224, 224]),
    "ocr_cls": (ocr_model("cls"), [3, 48, 192]),
}


def with_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn parameters that Constant and ConstantOfShape nodes make into initializers.

    The light models fill each with one number; they get random ones instead, of the size that keeps
    activations near 1.
    """
    random = np.random.default_rng(0)
    known = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    kept: list[onnx.NodeProto] = []
    made: list[onnx.TensorProto] = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = known[node.input[0]]
            made.append(onnx.numpy_helper.from_array(_random(random, shape), node.output[0]))
        elif node.op_type == "Constant":
            made.append(node.attribute[0].t)
            made[-1].name = node.output[0]
            known[node.output[0]] = onnx.numpy_helper.to_array(made[-1])
        else:
            kept.append(node)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(kept)
    changed.graph.initializer.extend(made)
    fed = input_of(changed)
    del changed.graph.input[:]
    changed.graph.input.append(fed)
    changed.ir_version = 8
    return changed


def _random(random: np.random.Generator, shape: Array) -> Array:
    """Weights by He's rule; vectors, which scale and shift channels, near 1."""
    if len(shape) < 2:
        return random.uniform(0.5, 1.0, shape).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)


def with_any_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take the batch of one out of inputs, outputs and the shapes that Reshape nodes ask for."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[0].dim_value in (0, 1, -1):
            dims[0].dim_param = "N"
    known = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Reshape" and node.input[0] not in known
    }
    for tensor in model.graph.initializer:
        sizes = onnx.numpy_helper.to_array(tensor)
        if tensor.name in shapes and sizes.size and sizes[0] == 1:
            copied = np.concatenate([[0], sizes[1:]]).astype(np.int64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(copied, tensor.name))
    return model


def input_of(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input that is no initializer."""
    known = {tensor.name for tensor in model.graph.initializer}
    (fed,) = (value for value in model.graph.input if value.name not in known)
    return fed


@pytest.mark.parametrize("name", MODELS)
def test_one_step_on_two_replicas(name: str) -> None:
    """All gradients, against torch's float64 ones of the union of both pieces."""
    path, shape = MODELS[name]
    model = with_any_batch(with_initializers(onnx.load(path)))
    form = whole_models.training_form(model)
    graph, names = whole_models.differentiated(form)
    onnx.checker.check_model(graph, full_check=True)
    random = np.random.default_rng(1)
    union = {input_of(model).name: random.normal(size=[3, *shape]).astype(np.float32)}
    sizes = [dim.dim_value for dim in form.graph.output[0].type.tensor_type.shape.dim[1:]]
    union["direction"] = random.normal(size=[3, *sizes]).astype(np.float32)
    pieces = [{key: array[part] for key, array in union.items()} for part in PIECES]
    got = whole_models.summed_gradients(graph, names, pieces)
    norms = sum(node.op_type == "SyncBatchNormalization" for node in form.graph.node)
    assert sum(node.op_type.endswith("NormalizationGrad") for node in graph.graph.node) == norms
    whole_models.require_gradients(form, got, union)
