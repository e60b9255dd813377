"""Models with operators that ONNX Runtime does not know: rewritten, and said not to be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import VerificationError
from tests.lenient_models import FLOAT, convolution, edited
from tests.verification.samples import compare


def _plugin(domain: str, *, imported: bool = False, training: bool = False) -> onnx.ModelProto:
    model = convolution(training=training)
    model.graph.node.append(
        oh.make_node("EfficientNMS_TRT", ["y"], ["boxes"], name="nms", domain=domain, score=0.5)
    )
    model.graph.output.append(oh.make_tensor_value_info("boxes", FLOAT, ["n", 100, 4]))
    if imported:
        model.opset_import.append(oh.make_opsetid(domain, 1))
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("domain", "imported"), [("", False), ("ai.onnx", False), ("TRT", False), ("mmdeploy", True)]
)
def test_plugins_are_left_where_they_are(domain: str, *, imported: bool, training: bool) -> None:
    model = _plugin(domain, imported=imported, training=training)
    rewrite = syncbn_convert.fold if training else syncbn_convert.fuse
    for result in (
        syncbn_convert.convert(model, verify=False),
        rewrite(model, verify=False),
    ):
        assert isinstance(result, onnx.ModelProto)
        (node,) = (node for node in result.graph.node if node.name == "nms")
        assert node.op_type == "EfficientNMS_TRT"
        assert node.domain == ("" if domain == "ai.onnx" else domain)
    assert len(syncbn_convert.inspect(model).nodes) == 1


@pytest.mark.parametrize("domain", ["", "TRT"])
def test_a_note_says_that_nothing_was_run(tmp_path: Path, domain: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_plugin(domain), path)
    output, report = syncbn_convert.convert_file(path)
    assert output is not None
    assert not report.verified
    name = f"{domain}::EfficientNMS_TRT" if domain else "EfficientNMS_TRT"
    assert report.notes == [
        f"not run: ONNX Runtime has no operator '{name}'; only onnx's checker has seen the result"
    ]


def test_a_model_that_is_refused_for_another_reason_is_an_error(tmp_path: Path) -> None:
    model = convolution()
    model.graph.node[2].input.append("y2")
    model.graph.node[2].op_type = "PRelu"
    model.graph.initializer.append(onh.from_array(np.ones(3, np.float64), "y2"))
    with pytest.raises(VerificationError, match="cannot load it"):
        compare(tmp_path, model, model)


def _embedded(model: onnx.ModelProto, rows: int) -> None:
    model.graph.input.append(oh.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"]))
    table = np.ones((rows, 8), np.float32)
    model.graph.initializer.append(onh.from_array(table, "table"))
    model.graph.node.insert(0, oh.make_node("Gather", ["table", "i"], ["e"]))
    model.graph.node[-1].input[0] = "sum"
    model.graph.node.insert(3, oh.make_node("ReduceMean", ["e"], ["em"], keepdims=0))
    model.graph.node.insert(4, oh.make_node("Add", ["h", "em"], ["sum"]))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_tables_are_indexed_with_small_numbers(rows: int) -> None:
    model = edited(lambda model: _embedded(model, rows))
    assert syncbn_convert.fuse_with_report(model)[1].verified
