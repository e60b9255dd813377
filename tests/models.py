"""Small models made for tests, and the real ones that come with installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

from .oracle import Layer

Array = npt.NDArray[Any]

DIGITS = Path(__file__).parents[1] / "models" / "digits_cnn.onnx"


def light_model(name: str) -> Path:
    """Path of a model from the onnx wheel, such as `resnet50`."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return folder / f"light_{name}.onnx"


def ocr_model(kind: str) -> Path:
    """Path of a PP-OCR model from the rapidocr-onnxruntime wheel: `cls`, `det` or `rec`."""
    from importlib.util import find_spec

    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (path,) = (Path(spec.origin).parent / "models").glob(f"*_{kind}_infer.onnx")
    return path


def float32(*values: float) -> Array:
    """A float32 vector."""
    return np.array(values, dtype=np.float32)


def make_layer(
    channels: int, *, dtype: Any = np.float32, epsilon: float = 1e-3, momentum: float = 0.8
) -> Layer:
    """A layer with parameters that are all different and none neutral."""
    random = np.random.default_rng(channels)
    scale, bias, mean = (random.normal(size=channels).astype(dtype) for _ in range(3))
    var = random.uniform(0.5, 2.0, size=channels).astype(dtype)
    return Layer(scale, bias, mean, var, epsilon, momentum)


def batchnorm_model(
    layer: Layer,
    shape: Sequence[int | str],
    *,
    dtype: Any = np.float32,
    opset: int = 17,
    training: bool = False,
) -> onnx.ModelProto:
    """One BatchNormalization named `norm` with input `x`, output `y` and parameters s, b, m, v."""
    element = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))
    attributes: dict[str, Any] = {"epsilon": layer.epsilon, "momentum": layer.momentum}
    outputs = ["y"]
    if training:
        attributes["training_mode"] = 1
        outputs += ["next_mean", "next_var"]
    node = oh.make_node(
        "BatchNormalization", ["x", "s", "b", "m", "v"], outputs, name="norm", **attributes
    )
    parameters = dict(zip("sbmv", (layer.scale, layer.bias, layer.mean, layer.var), strict=True))
    graph = oh.make_graph(
        [node],
        "norm",
        [oh.make_tensor_value_info("x", element, shape)],
        [oh.make_tensor_value_info("y", element, shape)],
        [onh.from_array(value, name) for name, value in parameters.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)
