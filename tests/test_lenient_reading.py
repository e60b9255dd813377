"""What ONNX Runtime loads, commands read; the written model keeps its interface as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import ModelFileError
from syncbn_convert.files import model_file
from tests.harness import run
from tests.lenient_models import FLOAT, Edit, convolution, edited

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def _without_shapes(*fields: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for field in fields:
            getattr(model.graph, field)[0].type.tensor_type.ClearField("shape")

    return edit


def _without_type(field: str) -> Edit:
    return lambda model: getattr(model.graph, field)[0].ClearField("type")


def _reversed(nodes: Any) -> None:
    backwards = list(nodes)[::-1]
    del nodes[:]
    nodes.extend(backwards)


def _domain(*, imported: bool) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.domain = "ai.onnx"
        if imported:
            model.opset_import[0].domain = "ai.onnx"

    return edit


def _returns(model: onnx.ModelProto, name: str) -> None:
    model.graph.output[0].CopyFrom(oh.make_tensor_value_info(name, FLOAT, None))


def _pooled(model: onnx.ModelProto) -> None:
    model.graph.node.append(oh.make_node("MaxPool", ["y"], ["p", ""], kernel_shape=[2, 2]))
    _returns(model, "p")


def _chosen(model: onnx.ModelProto) -> None:
    info = [oh.make_tensor_value_info("r", FLOAT, None)]
    branches = [
        oh.make_graph(
            [oh.make_node("Relu", ["q"], ["r"]), oh.make_node(op_type, ["y"], ["q"])], "b", [], info
        )
        for op_type in ("Neg", "Abs")
    ]
    model.graph.initializer.append(onh.from_array(np.array(True), "choice"))
    node = oh.make_node("If", ["choice"], ["z"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node.insert(0, node)
    _returns(model, "z")


def _in_function(model: onnx.ModelProto) -> None:
    nodes = [oh.make_node("Abs", ["q"], ["b"]), oh.make_node("Neg", ["a"], ["q"])]
    opset = oh.make_opsetid("", 17)
    model.functions.append(oh.make_function("my", "F", ["a"], ["b"], nodes, [opset]))
    model.opset_import.append(oh.make_opsetid("my", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "F", "my"


def _implicit_domain(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type, model.graph.node[2].domain = "Gelu", "com.microsoft"


READ: dict[str, Edit] = {
    "output without shape": _without_shapes("output"),
    "output without type": _without_type("output"),
    "input without shape": _without_shapes("input"),
    "value without shape": _without_shapes("value_info"),
    "value without type": _without_type("value_info"),
    "no shape at all": _without_shapes("input", "output", "value_info"),
    "unsorted": lambda model: _reversed(model.graph.node),
    "unsorted bodies": _chosen,
    "unsorted function": _in_function,
    "graph without name": lambda model: model.graph.ClearField("name"),
    "initializers that are no inputs": lambda model: setattr(model, "ir_version", 3),
    "nodes of ai.onnx": _domain(imported=False),
    "ai.onnx imported": _domain(imported=True),
    "nodes without names": lambda model: [node.ClearField("name") for node in model.graph.node],
    "empty trailing output": _pooled,
    "domain that is imported implicitly": _implicit_domain,
}


@pytest.mark.parametrize("kind", READ)
def test_a_model_is_converted_folded_and_fused(kind: str) -> None:
    model = edited(READ[kind])
    before = model.SerializeToString()
    expected = next(iter(run(model, {"x": X}).values())) if _runs(kind) else None
    form = syncbn_convert.convert(model, verify=False)
    assert isinstance(form, onnx.ModelProto)
    for result in (
        syncbn_convert.fold(form, verify=False),
        syncbn_convert.fuse(model, verify=False),
    ):
        assert isinstance(result, onnx.ModelProto)
        assert result.graph.input == model.graph.input
        assert result.graph.output == model.graph.output
        if expected is not None:
            (got,) = run(result, {"x": X}).values()
            np.testing.assert_allclose(got, expected, atol=1e-5)
    assert model.SerializeToString() == before
    assert syncbn_convert.inspect(model).nodes[0].convertible


def _runs(kind: str) -> bool:
    """Whether ONNX Runtime itself sorts: it does main graphs only."""
    return kind not in ("unsorted bodies", "unsorted function")


@pytest.mark.parametrize("kind", ["no shape at all", "output without type", "unsorted"])
def test_results_are_verified(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(edited(READ[kind]), path)
    form, report = syncbn_convert.convert_file(path)
    assert form is not None
    assert report.verified
    assert syncbn_convert.fold_file(form)[1].verified
    assert syncbn_convert.fuse_file(path)[1].verified


def test_sorting_keeps_the_order_of_what_is_independent() -> None:
    model = convolution()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[2], nodes[0], nodes[1]])
    model.graph.node.insert(1, oh.make_node("Neg", ["x"], ["n"], name="neg"))
    read = model_file.as_model(model)
    assert [node.name for node in read.graph] == ["neg", "conv", "norm", "relu"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "topologically sorted"),
        (lambda m: setattr(m.graph.node[2], "op_type", "Gelu"), "No Op registered for Gelu"),
        (lambda m: m.graph.input[0].ClearField("type"), "'type' of 'value_info'"),
    ],
)
def test_what_is_broken_is_refused(edit: Edit, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        model_file.as_model(edited(edit))


def test_types_with_maps_are_kept() -> None:
    model = convolution()
    model.graph.node.append(oh.make_node("GlobalAveragePool", ["y"], ["pooled"]))
    model.graph.node.append(oh.make_node("Flatten", ["pooled"], ["flat"]))
    model.graph.node.append(
        oh.make_node(
            "ZipMap", ["flat"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]
        )
    )
    model.opset_import.append(oh.make_opsetid("ai.onnx.ml", 1))
    row = oh.make_map_type_proto(onnx.TensorProto.INT64, oh.make_tensor_type_proto(FLOAT, []))
    model.graph.output.append(oh.make_value_info("maps", oh.make_sequence_type_proto(row)))
    fused = syncbn_convert.fuse(model, verify=False)
    assert isinstance(fused, onnx.ModelProto)
    assert fused.graph.output == model.graph.output
    for got, wanted in zip(run(fused, {"x": X})["maps"], run(model, {"x": X})["maps"], strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
