from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import onnxruntime
import pytest

from syncbn_convert import ConversionError, convert, convert_with_report, fold_with_report, inspect
from tests.verification.samples import CONV_NET, parse

Tool = Callable[[onnx.ModelProto, Path], onnx.ModelProto]

GEMM = """
<ir_version: 10, opset_import: ["" : 17]>
g (T[N,3] x) => (T[N,3] y) <T[3,3] w, T[3] s, T[3] b, T[3] m, T[3] v> {
  c = MatMul(x, w)  [bn] y = BatchNormalization(c, s, b, m, v)
}"""
MODELS = {
    "Conv": CONV_NET,
    "float32": GEMM.replace("T[", "float["),
    "float64": GEMM.replace("T[", "double["),
}


def inlined(form: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    del folder
    result: onnx.ModelProto = onnx.inliner.inline_local_functions(form)
    return result


def optimized(form: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(
        form.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(folder / "optimized.onnx")


@pytest.mark.parametrize("tool", [inlined, optimized])
@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS)
def test_form_that_another_tool_took_apart_is_refused(
    text: str, tool: Tool, tmp_path: Path
) -> None:
    form = convert(parse(text), verify=False)
    assert isinstance(form, onnx.ModelProto)
    apart = tool(form, tmp_path)
    assert any(node.op_type == "BatchNormalization" for node in apart.graph.node)
    with pytest.raises(ConversionError, match="whose functions another tool has inlined; take"):
        fold_with_report(apart)
    with pytest.raises(ConversionError):
        convert_with_report(apart)
    kernels = [node for node in inspect(apart).nodes if node.training_mode]
    assert kernels
    assert not any(node.convertible for node in kernels)
