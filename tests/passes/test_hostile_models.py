"""Models made to be misunderstood."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import ConversionError, ConvertOptions, FoldOptions
from tests.harness import run, spelling
from tests.models import batchnorm_model, make_layer

FLOAT = onnx.TensorProto.FLOAT


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_second_convert_leaves_the_form_alone() -> None:
    model = spelling("merged_initializers")
    half = syncbn_convert.convert(model, ConvertOptions(include=("first",)))
    assert isinstance(half, onnx.ModelProto)
    whole = syncbn_convert.convert(half)
    assert isinstance(whole, onnx.ModelProto)
    assert op_types(whole) == ["SyncBatchNormalization"] * 2
    raised = syncbn_convert.fold(half, FoldOptions(opset=20))
    assert isinstance(raised, onnx.ModelProto)
    assert op_types(raised) == ["BatchNormalization"] * 2
    assert raised.opset_import[0].version == 20


def test_fold_raises_the_opset_of_a_whole_form() -> None:
    form = syncbn_convert.convert(batchnorm_model(make_layer(2), ["n", 2, 3]), verify=False)
    folded = syncbn_convert.fold(form, FoldOptions(opset=20))
    assert isinstance(folded, onnx.ModelProto)
    assert folded.opset_import[0].version == 20


def test_a_shared_statistic_of_a_layer_called_twice() -> None:
    model = spelling("layer_called_twice")
    model.graph.node.append(oh.make_node("Mul", ["m", "m"], ["square"]))
    model.graph.output.append(oh.make_tensor_value_info("square", FLOAT, [2]))
    folded = syncbn_convert.fold(syncbn_convert.convert(model))
    assert isinstance(folded, onnx.ModelProto)
    assert [list(n.input[3:]) for n in folded.graph.node if n.op_type == "BatchNormalization"] == [
        ["m", "v"]
    ] * 2


def branches(opset: int) -> onnx.ModelProto:
    """An If whose branches use the same value names for different nodes."""
    then, other = make_layer(2, epsilon=1.0), make_layer(2, epsilon=1e-3)
    model = batchnorm_model(make_layer(2), ["n", 2], opset=opset)
    graphs = []
    for name, layer in (("then_bn", then), ("else_bn", other)):
        own = [f"{name}/{parameter}" for parameter in "sbmv"]
        values = (layer.scale, layer.bias, layer.mean, layer.var)
        model.graph.initializer.extend(map(onh.from_array, values, own))
        node = oh.make_node(
            "BatchNormalization", ["h", *own], ["r"], name=name, epsilon=layer.epsilon
        )
        graphs.append(
            oh.make_graph([node], name, [], [oh.make_tensor_value_info("r", FLOAT, ["n", 2])])
        )
    model.graph.node[0].output[0] = "h"
    choice = oh.make_node("If", ["c"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    model.graph.node.append(choice)
    model.graph.input.append(oh.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    model.ir_version = 6
    return model


def test_equal_names_in_sibling_branches_survive_the_rise() -> None:
    model = branches(11)
    form = syncbn_convert.convert(model)
    folded = syncbn_convert.fold(form)
    assert isinstance(folded, onnx.ModelProto)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    for choice in (True, False):
        feeds = {"x": x, "c": np.array(choice)}
        np.testing.assert_allclose(run(folded, feeds)["y"], run(model, feeds)["y"], rtol=1e-6)


def test_a_foreign_function_in_our_domain_is_refused() -> None:
    model = batchnorm_model(make_layer(2), ["n", 2])
    opset = oh.make_opsetid("", 17)
    node = oh.make_node("Neg", ["X"], ["Y"])
    model.functions.append(oh.make_function("syncbn", "AllReduce", ["X"], ["Y"], [node], [opset]))
    model.opset_import.append(oh.make_opsetid("syncbn", 1))
    with pytest.raises(ConversionError, match="'syncbn::AllReduce' of its own"):
        syncbn_convert.convert(model)


def test_an_untyped_float64_input_has_float64_statistics() -> None:
    layer = make_layer(3, dtype=np.float64, momentum=0.0)
    model = batchnorm_model(layer, ["n", 3, 4], dtype=np.float64)
    for tensor in list(model.graph.initializer)[:2]:
        value = onh.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onh.from_array(value, tensor.name))
    model.graph.node[0].input[0] = "h"
    model.graph.node.insert(0, oh.make_node("Identity", ["x"], ["h"]))
    form = syncbn_convert.convert(model)
    assert isinstance(form, onnx.ModelProto)
    x = np.random.default_rng(0).normal(size=(50, 3, 4)) + 1e7
    got = run(form, {"x": x})["v.next"]
    np.testing.assert_allclose(got, x.var(axis=(0, 2)), rtol=1e-1)


def test_foreign_bindings_stay() -> None:
    model = spelling("returned_running_statistics")
    entry = model.training_info.add()
    entry.algorithm.CopyFrom(
        oh.make_graph(
            [oh.make_node("Neg", ["s"], ["s_new"])],
            "algorithm",
            [],
            [oh.make_tensor_value_info("s_new", FLOAT, [2])],
        )
    )
    entry.update_binding.add(key="s", value="s_new")
    folded = syncbn_convert.fold(model)
    assert isinstance(folded, onnx.ModelProto)
    assert [pair.key for pair in folded.training_info[0].update_binding] == ["s"]


def test_freezing_everything_is_said_and_verified() -> None:
    model = spelling("returned_running_statistics")
    frozen, report = syncbn_convert.convert_with_report(model, ConvertOptions(freeze=("norm",)))
    assert isinstance(frozen, onnx.ModelProto)
    assert [record.action for record in report.records] == ["frozen"]
    assert "graph output 'new_mean' (statistic of a frozen node) was removed" in report.notes


def test_training_mode_in_a_body_that_returns_its_statistics() -> None:
    model: Any = spelling("in_if_body")
    then, other = (attribute.g for attribute in model.graph.node[1].attribute)
    then.output.append(oh.make_tensor_value_info("t_mean", FLOAT, [2]))
    other.node.append(oh.make_node("Identity", ["m2"], ["e_mean"]))
    other.output.append(oh.make_tensor_value_info("e_mean", FLOAT, [2]))
    model.graph.node[1].output.append("mean")
    _, report = syncbn_convert.convert_with_report(model)
    assert report.converted == 1
    with pytest.raises(ConversionError, match="'t_mean' is returned by If 'choose' then_branch"):
        syncbn_convert.fold(model)


def test_mixed_types_fold() -> None:
    form = syncbn_convert.convert(spelling("mixed_types"))
    assert isinstance(syncbn_convert.fold(form), onnx.ModelProto)


def test_parameters_that_cannot_be_computed_are_left_alone() -> None:
    model = spelling("constant_parameters")
    model.graph.initializer[0].CopyFrom(onh.from_array(np.array([-3]), "channels"))
    report = syncbn_convert.inspect(model)
    assert not report.nodes[0].convertible
