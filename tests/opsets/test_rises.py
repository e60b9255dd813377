"""Each operator at each opset, risen, against ONNX Runtime on the original, or against numpy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.backend.test.loader import load_node_model_tests

from syncbn_convert.files.model_file import to_proto
from syncbn_convert.form.opset import raise_ir_version, raise_opset
from syncbn_convert.form.training_form import MIN_OPSET
from syncbn_convert.passes.gradients.gradient_tape import MIN_OPSET as GRADIENT_OPSET
from tests.opsets import arguments, layers, pointwise
from tests.opsets.samples import NEWEST, Array, Sample

EPS = float(np.finfo(np.float32).eps)
RTOL = 16 * EPS
"""Both sides run in float32: one rounding error each of at most 8 operations."""
FIRST_IR = 10
LOST = frozenset(["GlobalLpPool", "MaxRoiPool", "RoiAlign"])
"""ONNX Runtime has kernels until opset 21 only."""
SAMPLES = [*pointwise.samples(), *layers.samples(), *arguments.samples()]
OP_TYPES = sorted({sample.op_type for sample in SAMPLES})


def risen(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model in another opset."""
    subject = ir.from_proto(model)
    raise_ir_version(subject, FIRST_IR)
    raise_opset(subject, opset)
    assert subject.opset_imports[""] == opset
    return to_proto(subject)


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def reference(sample: Sample, model: onnx.ModelProto) -> list[Any]:
    """What ONNX Runtime computes; what numpy does where it has no kernel of that opset."""
    try:
        return run(model, sample.feeds())
    except Exception:  # ONNX Runtime has no kernel of that opset, or no schema
        if sample.expected is None:
            return []
        return [sample.expected(*(array for array in sample.inputs if array is not None))]


def check(got: Iterable[Any], wanted: Iterable[Any]) -> None:
    for found, right in zip(got, wanted, strict=False):
        if isinstance(right, list):
            check(found, right)
            continue
        assert np.shape(found) == np.shape(right)
        if np.asarray(right).dtype.kind in "fc":
            scale = float(np.max(np.abs(right), initial=0.0, where=np.isfinite(right)))
            np.testing.assert_allclose(found, right, rtol=0, atol=RTOL * scale)
        else:
            np.testing.assert_array_equal(found, right)


def rises(sample: Sample, opset: int, targets: Iterable[int]) -> int:
    """Raise a sample of an opset to those; return how many were compared."""
    compared = 0
    for named in (False, True):
        model = sample.model(opset, named=named)
        wanted = reference(sample, model)
        for target in targets if wanted else ():
            if target <= opset or (target > 21 and sample.op_type in LOST):
                continue
            check(run(risen(model, target), sample.feeds()), wanted)
            compared += 1
    return compared


@pytest.mark.parametrize("op_type", OP_TYPES)
def test_operator_at_the_first_opset_of_each_spelling(op_type: str) -> None:
    own = [sample for sample in SAMPLES if sample.op_type == op_type]
    assert sum(rises(sample, sample.first, [GRADIENT_OPSET, NEWEST]) for sample in own)


@pytest.mark.sweep
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_every_opset_of_every_sample(sample: Sample) -> None:
    targets = [MIN_OPSET, GRADIENT_OPSET, 21, NEWEST]
    opsets = range(sample.first, min(sample.last + 1, NEWEST))
    assert sum(rises(sample, opset, targets) for opset in opsets)


def onnx_cases() -> list[Any]:
    """The node tests of the onnx wheel, whose modules warn as they are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_node_model_tests())


@pytest.mark.sweep
def test_onnx_own_cases() -> None:
    compared = 0
    for case in onnx_cases():
        opset = next((i.version for i in case.model.opset_import if not i.domain), 0)
        if not 0 < opset < NEWEST or "_expanded" in case.name or case.name == "test_scan_sum":
            continue
        names = [value.name for value in case.model.graph.input]
        ((inputs, _),) = case.data_sets
        feeds = dict(zip(names, inputs, strict=True))
        try:
            wanted = run(case.model, feeds)
        except Exception:  # whatever ONNX Runtime does not do
            continue
        for target in {GRADIENT_OPSET, 21, NEWEST}:
            if target > opset:
                check(run(risen(case.model, target), feeds), wanted)
                compared += 1
    assert compared > 1000
