"""Every hostile case: what can be fused is, what cannot is left, and the function stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from syncbn_convert import model_file
from syncbn_convert.passes import FuseBatchNorm
from tests.fusion import cases

Array = npt.NDArray[Any]


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run on ONNX Runtime, which fuses nothing of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def feeds_of(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    given = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name in given:
            continue
        tensor = info.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if dtype == np.bool_:
            feeds[info.name] = np.array(bool(seed % 2))
        else:
            feeds[info.name] = generator.normal(size=shape).astype(dtype)
    return feeds


def batchnorms(model: onnx.ModelProto) -> int:
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return sum(node.op_type == "BatchNormalization" for node in nodes)


def require_same(model: onnx.ModelProto, fused: onnx.ModelProto) -> None:
    for seed in (0, 1):
        feeds = feeds_of(model, seed)
        wanted, got = run(model, feeds), run(fused, feeds)
        assert list(wanted) == list(got)
        for name, exact in wanted.items():
            assert got[name].shape == exact.shape
            assert got[name].dtype == exact.dtype
            if not np.issubdtype(exact.dtype, np.floating):
                np.testing.assert_array_equal(got[name], exact)
                continue
            wide = exact.astype(np.float64)
            finite = np.isfinite(wide)
            np.testing.assert_array_equal(np.isfinite(got[name]), finite)
            size = np.abs(wide[finite]).max(initial=0.0)
            unit = float(np.finfo(exact.dtype).eps)
            # 64 roundings: sums of up to 36 products, twice
            error = np.abs(got[name].astype(np.float64)[finite] - wide[finite]).max(initial=0.0)
            assert error <= 64 * unit * size, (name, error / size)


@pytest.mark.parametrize("name", cases.names())
def test_case(name: str) -> None:
    case = cases.case(name)
    before = case.model.SerializeToString()
    subject = model_file.as_model(case.model)
    result = FuseBatchNorm()(subject)
    fused = model_file.to_proto(subject)
    assert case.model.SerializeToString() == before
    onnx.checker.check_model(fused, full_check=True)
    require_same(case.model, fused)
    kept = [record for record in result.records if record.action == "kept"]  # type: ignore[attr-defined]
    assert batchnorms(fused) == case.left, [record.reason for record in kept]
    assert all(record.reason for record in kept)
    again = FuseBatchNorm()(subject)
    assert not again.modified


def test_there_are_as_many_as_promised() -> None:
    assert len(cases.names()) >= 80
