"""Small models for the tests of verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from syncbn_convert.reports import VerifyReport
from syncbn_convert.verification import VerifyOptions
from syncbn_convert.verification.comparison import compare_files

Array = np.ndarray[Any, np.dtype[Any]]

CONV_NET = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,H,W] x, float[4] scale) => (float[N,2,H,W] y)
<float[4,3,3,3] w1, float[4] scale, float[4] bias, float[4] mean, float[4] var, float[2,4,1,1] w2> {
  [conv1] c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
  [bn1] b1 = BatchNormalization(c1, scale, bias, mean, var)
  [relu1] r1 = Relu(b1)
  [conv2] y = Conv(r1, w2)
}
"""

GEMM_NET = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,64] x) => (float[N,8] y)
<float[64,8] w, float[8] b> {
  [gemm] h = Gemm(x, w, b)
  [tanh] y = Tanh(h)
}
"""

WORDS_WITH_FUNCTION = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
g (float[N,4] x, bool flag) => (float[N,4] y)
<float[4] w> {
  k = Constant<value_floats = [0.5, 0.25, 0.125, 2.0]>()
  s = local.scale<factor = 0.1>(x, w)
  z = If(flag) <
    then_branch = t () => (float[N,4] a) { a = Add(s, k) },
    else_branch = e () => (float[N,4] b) { b = Mul(s, k) }
  >
  h = Cast<to = 10>(z)
  y = Cast<to = 1>(h)
}
<domain: "local", opset_import: ["" : 17]>
scale <factor> (u, v) => (o) {
  f = Constant<value_float: float = @factor>()
  p = Mul(u, v)
  o = Mul(p, f)
}
"""


def parse(text: str, seed: int = 0, **initializers: Array) -> onnx.ModelProto:
    """Return a model from text, its declared values initialized by positive random numbers."""
    random = np.random.default_rng(seed)
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    for info in model.graph.value_info:
        kind = info.type.tensor_type
        shape = [dimension.dim_value for dimension in kind.shape.dim]
        values = initializers.get(info.name, random.uniform(0.1, 1.0, shape))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(values).astype(dtype), info.name)
        )
    del model.graph.value_info[:]
    return model


def scaled(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """Return a copy in which one initializer is multiplied by a factor."""
    return changed(model, name, lambda values: values * values.dtype.type(factor))


def changed(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """Return a copy in which one initializer is replaced."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return copy


def save(folder: Path, **models: onnx.ModelProto) -> list[Path]:
    """Write models as `<name>.onnx` and return their paths."""
    paths = []
    for name, model in models.items():
        paths.append(folder / f"{name}.onnx")
        onnx.save(model, paths[-1])
    return paths


def compare(
    folder: Path,
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    outputs: list[str] | None = None,
    **options: Any,
) -> VerifyReport:
    """Compare two models in this process."""
    first, second = save(folder, reference=reference, candidate=candidate)
    *_, report = compare_files(
        first, second, VerifyOptions(**options), lambda _model, _action: None, outputs=outputs
    )
    return report


def shapes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays by name."""
    return {name: array.shape for name, array in arrays.items()}
