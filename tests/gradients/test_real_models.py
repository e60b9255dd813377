"""Gradients of trained and well-known models that nobody here made: one step on two replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import syncbn_convert
from syncbn_convert import ConvertOptions
from tests.gradients import whole_models
from tests.models import light_model, ocr_model

Array = npt.NDArray[Any]

pytestmark = pytest.mark.sweep

PIECES = (slice(0, 2), slice(2, 3))
PIECES_OF_FIVE = (slice(0, 3), slice(3, 5))
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
    weights: Array = random.standard_normal(shape) * np.sqrt(2 / fan_in)
    return weights.astype(np.float32)


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
    fed: list[onnx.ValueInfoProto] = [v for v in model.graph.input if v.name not in known]
    assert len(fed) == 1
    return fed[0]


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


APPLICATIONS = {"ResNet50": 53, "MobileNetV2": 52, "EfficientNetB0": 49}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_application_on_two_replicas(name: str, tmp_path: Path) -> None:
    """All gradients, against TensorFlow's float64 ones of the union of both pieces."""
    script = Path(__file__).with_name("keras_gradients.py")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, script, name, tmp_path], env=environment, check=True)
    source, target = tmp_path / "model.keras", tmp_path / "form.onnx"
    syncbn_convert.convert_file(source, target, ConvertOptions(opset=18), verify=False)
    form = whole_models.with_loss(onnx.load(target))
    graph, names = whole_models.differentiated(form)
    onnx.checker.check_model(graph, full_check=True)
    assert (
        sum(node.op_type.endswith("NormalizationGrad") for node in graph.graph.node)
        == (APPLICATIONS[name])
    )
    with np.load(tmp_path / "gradients.npz") as arrays:
        union = {form.graph.input[0].name: arrays["images"], "direction": arrays["direction"]}
        wanted, rounded = (
            {
                key.partition(":")[2]: _as_onnx(key, arrays[key]).astype(np.float64)
                for key in arrays
                if key.startswith(dtype)
            }
            for dtype in ("float64:", "float32:")
        )
    assert set(names) == set(wanted)
    pieces = [{key: array[part] for key, array in union.items()} for part in PIECES_OF_FIVE]
    got = whole_models.summed_gradients(graph, names, pieces)
    shaped = {key: value.reshape(wanted[key].shape) for key, value in got.items()}
    whole_models.require_close(shaped, wanted, rounded)


def _as_onnx(name: str, gradient: Array) -> Array:
    """A kernel's gradient in ONNX's order: [out, in, spatial]."""
    if gradient.ndim != 4:
        return gradient
    turned = gradient.transpose(3, 2, 0, 1)
    if "depthwise" in name or "dwconv" in name:
        turned = gradient.transpose(2, 3, 0, 1)
    return turned
