from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from syncbn_convert import fuse

from .samples import CONV_NET, compare, parse, scaled

TWO = (
    CONV_NET.replace("y = Conv(r1, w2)", "c2 = Conv(r1, w2)  [tail] y = Tanh(c2)")
    .replace("float[4] scale)", "float[4] other)")
    .replace("<float[4,3,3,3]", "<float[4] other, float[4,3,3,3]")
)


@pytest.mark.parametrize("factor", [1.1, -2.0])
@pytest.mark.parametrize("verified", [True, False])
def test_node_that_was_fused_by_design_is_not_named(
    tmp_path: Path, factor: float, verified: bool
) -> None:
    model = parse(TWO)
    fused = fuse(model, verify=verified)
    assert isinstance(fused, onnx.ModelProto)
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu", "Conv", "Tanh"]
    assert compare(tmp_path, model, fused).equal
    report = compare(tmp_path, model, scaled(fused, "w2", factor))
    assert str(report.first_difference).startswith("node 'conv2' (Conv), output 'c2'")


def test_fused_node_that_is_wrong_is_named(tmp_path: Path) -> None:
    model = parse(TWO)
    fused = fuse(model)
    assert isinstance(fused, onnx.ModelProto)
    weight = next(node for node in fused.graph.node if node.op_type == "Conv").input[1]
    report = compare(tmp_path, model, scaled(fused, weight, 1.5))
    assert str(report.first_difference).startswith("node 'bn1' (BatchNormalization), output 'b1'")
    assert np.isfinite(report.max_relative_error)
