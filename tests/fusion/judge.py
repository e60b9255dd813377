"""Are two models the same function?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS

Array = npt.NDArray[Any]

ROUNDINGS = 64
_SIZES = (2, 4, 7, 7)
"""Of axes that are called N, C, H and L."""


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
    """Return random inputs; with an odd seed values for overridable initializers too."""
    generator = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}
    if seed % 2 and model.ir_version >= FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS:
        defaults = set()
    feeds: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name in defaults:
            continue
        tensor = info.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        sizes = dict(zip("NCHL", _SIZES, strict=True))
        shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in tensor.shape.dim]
        if dtype == np.bool_:
            feeds[info.name] = np.array(bool(seed % 2))
        else:
            feeds[info.name] = (generator.normal(size=shape) * _spread(dtype)).astype(dtype)
    return feeds


def _spread(dtype: Any) -> float:
    return 1.0 if np.issubdtype(dtype, np.floating) else 5.0


def batchnorms(model: onnx.ModelProto, counted: Collection[str] = ("BatchNormalization",)) -> int:
    """Count the nodes of some operators, in bodies and functions too."""
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return sum(node.op_type in counted for node in nodes)


def require_same(model: onnx.ModelProto, fused: onnx.ModelProto) -> None:
    """Compare two models on random inputs, each on ONNX Runtime without optimizations.

    An output may differ by 64 roundings of its largest value: it is a sum of up to 36 products,
    computed twice.

    Raises:
        AssertionError: if they differ.
    """
    assert [info.name for info in model.graph.output] == [info.name for info in fused.graph.output]
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
            error = np.abs(got[name].astype(np.float64)[finite] - wide[finite]).max(initial=0.0)
            assert error <= ROUNDINGS * unit * size, (name, error / size)
