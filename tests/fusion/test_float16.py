"""Rounding fused weights to float16 must not cost what fusing saves.

The float64 twin has the values of the float16 model; it runs on ONNX's reference implementation,
which alone has all kernels in float64. Float16 runs on ONNX Runtime as it comes, and on the
reference implementation, which rounds every result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import syncbn_convert
from tests.models import DIGITS, ocr_model

LARGEST_RATIO = 1.5
SAMPLES = 8
Feeds = list[dict[str, Any]]


def _cast(proto: onnx.ModelProto, source: ir.DataType, target: ir.DataType) -> onnx.ModelProto:
    """Return a model with another floating-point type in the place of one."""
    model = ir.from_proto(proto)

    def tensor(old: Any) -> Any:
        if old is None or old.dtype != source:
            return old
        return ir.tensor(old.numpy().astype(target.numpy()), name=old.name)

    nodes = list(model.graph.all_nodes())
    made = [output for node in nodes for output in node.outputs]
    for value in [*model.graph.inputs, *model.graph.initializers.values(), *made]:
        value.const_value = tensor(value.const_value)
        if value.dtype == source:
            value.type = ir.TensorType(target)
    for node in nodes:
        if "value" in node.attributes:
            new = tensor(node.attributes["value"].as_tensor())
            node.attributes["value"] = ir.AttrTensor("value", new)
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == int(source):
            node.attributes["to"] = ir.AttrInt64("to", int(target))
    return ir.to_proto(model)


def _on_reference(model: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    evaluator = ReferenceEvaluator(model)
    found: list[Any] = [evaluator.run(None, feed) for feed in feeds]
    return [outputs[0] for outputs in found]


def _on_runtime(model: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [session.run(None, feed)[0] for feed in feeds]


def _chain(seed: int) -> onnx.ModelProto:
    """Return six of Conv, BatchNormalization, Relu with the statistics that their inputs have."""
    generator = np.random.default_rng(seed)
    channels = 16
    x = y = ir.val("x", ir.DataType.FLOAT16, ["n", channels, 12, 12])
    nodes: list[ir.Node] = []
    for index in range(6):
        names = ("w", "s", "b", "m", "v")
        arrays = (
            generator.normal(0, 1 / np.sqrt(4.5 * channels), (channels, channels, 3, 3)),
            generator.uniform(0.3, 2.0, channels),
            generator.normal(0, 0.5, channels),
            generator.normal(0, 0.5, channels),
            generator.uniform(0.2, 2.0, channels),
        )
        weight, *parameters = (
            ir.val(f"{name}{index}", const_value=ir.tensor(array.astype(np.float16), name=name))
            for name, array in zip(names, arrays, strict=True)
        )
        conv = ir.node("Conv", [y, weight], {"pads": [1] * 4})
        norm = ir.node("BatchNormalization", [conv.outputs[0], *parameters])
        relu = ir.node("Relu", [norm.outputs[0]])
        nodes += [conv, norm, relu]
        y = relu.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    values = [value for node in nodes for value in node.inputs if value and value.const_value]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=values, opset_imports={"": 17}, name="c")
    return ir.to_proto(ir.Model(graph, ir_version=10))


def _distance(found: list[Any], truth: list[Any]) -> float:
    """Return the root of the mean squared difference over all inputs."""
    squares = [
        (one.astype(np.float64) - other).ravel() ** 2
        for one, other in zip(found, truth, strict=True)
    ]
    return float(np.sqrt(np.mean(np.concatenate(squares))))


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    return _cast(model, ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _ocr() -> onnx.ModelProto:
    """The reference implementation takes BatchNormalization of opset 9 to be in training mode."""
    return _half(onnx.version_converter.convert_version(onnx.load(ocr_model("cls")), 17))


CHAINS = {f"chain {seed}": (functools.partial(_chain, seed), (2, 16, 12, 12)) for seed in range(4)}
MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    **CHAINS,
    "digits_cnn": (lambda: _half(onnx.load(DIGITS)), (2, 8, 8, 1)),
    "ocr_cls": (_ocr, (1, 3, 48, 96)),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_close_to_float64_on_onnx_runtime(name: str) -> None:
    before, after = _distances(name, _on_runtime)
    assert 0 < after <= LARGEST_RATIO * before, f"{after / before:.2f} times as far"


@pytest.mark.parametrize("name", [*CHAINS, "ocr_cls"])
def test_as_close_to_float64_where_every_result_is_rounded(name: str) -> None:
    before, after = _distances(name, _on_reference)
    assert 0 < after <= LARGEST_RATIO * before, f"{after / before:.2f} times as far"


def test_a_pool_can_let_the_unfused_model_win() -> None:
    """Where every result is rounded, errors of activations average out in a pool at the end.

    Those of weights are the same for all pixels; they stay within the precision of the type.
    """
    before, after = _distances("digits_cnn", _on_reference)
    assert before < after < float(np.finfo(np.float16).eps)


def _distances(
    name: str, run: Callable[[onnx.ModelProto, Feeds], list[Any]]
) -> tuple[float, float]:
    """Return how far the model and the fused model are from the float64 twin."""
    make, shape = MODELS[name]
    model = make()
    generator = np.random.default_rng(0)
    feeds = [
        {model.graph.input[0].name: generator.normal(size=shape).astype(np.float16)}
        for _ in range(SAMPLES)
    ]
    wide = [{key: value.astype(np.float64) for key, value in feed.items()} for feed in feeds]
    truth = _on_reference(_cast(model, ir.DataType.FLOAT16, ir.DataType.DOUBLE), wide)
    fused, report = syncbn_convert.fuse_with_report(model, verify=False)
    assert isinstance(fused, onnx.ModelProto)
    assert report.converted == report.found > 0
    before, after = (_distance(run(half, feeds), truth) for half in (model, fused))
    return before, after
