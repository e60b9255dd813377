from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from syncbn_convert.files.model_file import as_model, to_proto
from syncbn_convert.passes import CanonicalizeBatchNorm, ConvertSyncBatchNorm, FoldMovingStatistics
from syncbn_convert.rewriting import pipeline
from tests import oracle
from tests.harness import SPELLINGS, apply_and_check, run, spelling
from tests.models import batchnorm_model, float32, make_layer

EPS = 16 * float(np.finfo(np.float32).eps)
STATE: dict[str, Any] = {"removed_inputs": ("m", "v"), "removed_outputs": ("m.next", "v.next")}


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    subject = as_model(model)
    pipeline.run(subject, [CanonicalizeBatchNorm(), ConvertSyncBatchNorm()])
    return to_proto(subject)


def batchnorms(model: onnx.ModelProto) -> list[tuple[str, list[str], dict[str, Any]]]:
    return [
        (n.name, list(n.input), {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
        for n in model.graph.node
        if n.op_type == "BatchNormalization"
    ]


def initializers(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


@pytest.mark.parametrize(
    "name",
    [
        "bfloat16", "float16", "float64", "in_function", "in_if_body", "layer_called_twice",
        "merged_initializers", "mixed_types", "opset7_spatial", "overridable_scale",
    ],
)  # fmt: skip
def test_convert_then_fold_is_the_identity(name: str) -> None:
    subject = as_model(spelling(name))
    CanonicalizeBatchNorm()(subject)
    before = to_proto(subject)
    ConvertSyncBatchNorm()(subject)
    form = to_proto(subject)
    subject = as_model(form)
    FoldMovingStatistics()(subject)
    after = to_proto(subject)
    if name != "in_if_body":  # its inner node is in training mode, and comes back in inference mode
        assert [n.SerializeToString() for n in after.graph.node] == [
            n.SerializeToString() for n in before.graph.node
        ]
    assert initializers(after) == initializers(before)
    assert [i.name for i in after.graph.input] == [i.name for i in before.graph.input]
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    assert not after.training_info
    assert not after.functions
    assert list(after.opset_import) == list(before.opset_import)


def test_explicit_training_mode_0_comes_back() -> None:
    model = batchnorm_model(make_layer(2), ["n", 2])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("training_mode", 0))
    subject = as_model(converted(model))
    FoldMovingStatistics()(subject)
    assert batchnorms(to_proto(subject)) == batchnorms(model)


def test_trained_statistics_are_folded() -> None:
    layer = make_layer(3)
    form = converted(batchnorm_model(layer, ["n", 3, 4]))
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)
    trained = run(form, {"x": x})
    for tensor in form.graph.initializer:
        if tensor.name in ("m", "v"):
            value = trained[f"{tensor.name}.next"]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    moved = oracle.Layer(
        layer.scale, layer.bias, trained["m.next"], trained["v.next"], layer.epsilon
    )
    apply_and_check(
        FoldMovingStatistics(),
        form,
        feeds={"x": x},
        expected=lambda feeds: {"y": oracle.infer(moved, feeds["x"])},
        rtol=EPS,
        **STATE,
    )


def test_a_split_statistic_that_moved_stays_split() -> None:
    form = converted(spelling("merged_initializers"))
    for tensor in form.graph.initializer:
        if tensor.name == "zeros/first":
            tensor.CopyFrom(onnx.numpy_helper.from_array(float32(3.0, 4.0), tensor.name))
    subject = as_model(form)
    FoldMovingStatistics()(subject)
    folded = batchnorms(to_proto(subject))
    assert folded[0][1] == ["x", "ones", "zeros", "zeros/first", "ones"]
    assert folded[1][1] == ["h", "ones", "b", "zeros", "ones"]


@pytest.mark.parametrize(
    "name",
    [
        "opset9_five_outputs",
        "opset14_training_one_output",
        "opset14_training_three_outputs",
        "opset15_training_one_output",
        "opset15_training_three_outputs",
    ],
)
def test_training_mode_exports_fold_and_fuse(name: str, tmp_path: Any) -> None:
    layer = oracle.Layer(
        float32(1.5, 0.5), float32(0.1, -0.2), float32(0.3, -0.4),
        float32(1.2, 0.8),
    )  # fmt: skip
    weights = float32(0.5, -0.25, 0.125, 0.3, 0.2, -0.6).reshape(2, 3)

    def expected(feeds: Any) -> dict[str, Any]:
        mixed = np.einsum("oc,nchw->nohw", weights.astype(np.float64), feeds["x"])
        return {"y": np.maximum(oracle.infer(layer, mixed), 0)}

    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    folded, result = apply_and_check(
        FoldMovingStatistics(), spelling(name), feeds={"x": x}, expected=expected, rtol=EPS
    )
    assert [record.action for record in result.records] == ["folded"]
    (node,) = [n for n in folded.graph.node if n.op_type == "BatchNormalization"]
    assert list(node.output) == ["h"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(folded.SerializeToString(), options)
    fused = onnx.load(tmp_path / "fused.onnx")
    assert "BatchNormalization" not in {n.op_type for n in fused.graph.node}


def test_returned_statistics_are_dropped_and_said() -> None:
    _, result = apply_and_check(
        FoldMovingStatistics(),
        spelling("returned_running_statistics"),
        removed_outputs=("new_mean", "new_var"),
    )
    assert result.notes == [
        "graph output 'new_mean' (statistic of the training mode) was removed",
        "graph output 'new_var' (statistic of the training mode) was removed",
    ]


def test_a_body_is_folded_too() -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    folded, result = apply_and_check(FoldMovingStatistics(), spelling("in_if_body"))
    assert [(r.node, r.location) for r in result.records] == [("inner", "If 'choose' then_branch")]
    outer = oracle.Layer(
        float32(1.5, 0.5), float32(0.1, -0.2), float32(0.3, -0.4),
        float32(1.2, 0.8),
    )  # fmt: skip
    inner = oracle.Layer(float32(1, 2), float32(0, 1), float32(0.5, -0.5), float32(1, 4))
    wanted = oracle.infer(inner, oracle.infer(outer, x))
    got = run(folded, {"x": x, "choice": np.array(True)})["y"]
    assert np.max(np.abs(got - wanted)) <= EPS * np.max(np.abs(wanted))


def test_a_read_saved_statistic_leaves_the_node_alone() -> None:
    model = spelling("opset9_five_outputs")
    model.graph.node.append(onnx.helper.make_node("Identity", ["saved_mean"], ["reader"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("reader", onnx.TensorProto.FLOAT, [2])
    )
    subject = as_model(model)
    result = FoldMovingStatistics()(subject)
    assert not result.modified
    (record,) = result.records  # type: ignore[attr-defined]
    assert record.action == "skipped"
    assert "saved statistic 'saved_mean'" in record.reason


def test_readers_of_running_statistics_read_the_moving_ones() -> None:
    model = spelling("opset15_training_three_outputs")
    model.graph.node.append(onnx.helper.make_node("Neg", ["next_mean"], ["negative"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("negative", onnx.TensorProto.FLOAT, [2])
    )
    folded, _ = apply_and_check(FoldMovingStatistics(), model)
    x = np.zeros((1, 3, 6, 6), np.float32)
    assert run(folded, {"x": x})["negative"].tolist() == float32(-0.3, 0.4).tolist()


def test_every_spelling_is_parsed_by_some_test() -> None:
    assert len(list(SPELLINGS.glob("*.onnxtxt"))) == 22
