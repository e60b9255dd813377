"""Static sizes of 0: compared with them left open, or said to hold nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import syncbn_convert
from tests.models import batchnorm_model, make_layer
from tests.verification.samples import compare, parse, scaled

NET = """<ir_version: 10, opset_import: ["" : 17]>
g (float[INPUT] x) => (float[a,c,h,w] y)
<float[4,3,3,3] w1, float[4] s, float[4] b, float[4] m, float[4] v> {
  c = Conv(x, w1)  [bn] y = BatchNormalization(c, s, b, m, v)
}"""
OPEN = "the static size 0 of 'x' holds no sample: compared with that size left open"


def _net(sizes: str) -> onnx.ModelProto:
    return parse(NET.replace("INPUT", sizes))


@pytest.mark.parametrize("sizes", ["0,3,8,8", "2,3,0,8", "0,3,0,0"])
def test_sizes_of_0_are_left_open(sizes: str, tmp_path: Path) -> None:
    model = _net(sizes)
    report = compare(tmp_path, model, model)
    assert report.equal
    assert report.notes == [OPEN]
    assert not compare(tmp_path, model, scaled(model, "s", 1.01)).equal


def test_results_are_verified_and_stay_as_they_are() -> None:
    model = _net("0,3,8,8")
    model.graph.value_info.append(
        oh.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [0, 4, 6, 6])
    )
    form, report = syncbn_convert.convert_with_report(model)
    assert report.verified
    assert report.notes == [OPEN]
    assert isinstance(form, onnx.ModelProto)
    assert form.graph.input[0] == model.graph.input[0]
    assert np.isfinite(report.max_relative_error or 0.0)


def test_a_branch_without_samples_is_said_not_to_be_compared() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17]>
        g (float[N,3,8] x) => (float[N,3,k] y, float[N,3,8] z)
        <float[3] s, float[3] b, float[3] m, float[3] v, int64[1] first, int64[1] axis> {
          [whole] z = BatchNormalization(x, s, b, m, v)
          t = Slice(x, first, first, axis)  [empty] y = BatchNormalization(t, s, b, m, v)
        }""",
        first=np.array([0]),
        axis=np.array([2]),
    )
    _, report = syncbn_convert.convert_with_report(model)
    assert report.verified
    assert report.notes == [
        "output 'y': it holds no element in any run, so nothing is proven about it",
        "node 'empty' gets no samples on what was tried, so nothing was compared there",
    ]


def test_weights_of_size_0_stay() -> None:
    model = batchnorm_model(make_layer(0), ["n", 0, 4])
    _, report = syncbn_convert.convert_with_report(model)
    assert any("node 'norm' gets no samples" in note for note in report.notes)
