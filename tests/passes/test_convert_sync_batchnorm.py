from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from syncbn_convert.files.model_file import as_model, to_proto
from syncbn_convert.form import training_info
from syncbn_convert.graph.dtypes import epsilon
from syncbn_convert.passes import CanonicalizeBatchNorm, ConvertSyncBatchNorm
from syncbn_convert.rewriting import pipeline
from tests import oracle
from tests.harness import apply_and_check, run, spelling
from tests.models import batchnorm_model, float32, make_layer

STATE: dict[str, Any] = {"added_inputs": ("m", "v"), "added_outputs": ("m.next", "v.next")}


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    subject = as_model(model)
    CanonicalizeBatchNorm()(subject)
    return to_proto(subject)


def convert(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    subject = as_model(model)
    pipeline.run(subject, [CanonicalizeBatchNorm(), ConvertSyncBatchNorm(**options)])
    return to_proto(subject)


def units(dtype: Any, count: float = 16.0) -> float:
    """Allowed relative error: `count` units in the last place of the dtype."""
    return count * epsilon(np.dtype(dtype))


@pytest.mark.parametrize("rank", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_float64_batch_normalization(rank: int, dtype: Any) -> None:
    layer = make_layer(3, dtype=dtype)
    shape = [7, 3, 4, 2, 3, 2][:rank]
    x = (np.random.default_rng(rank).normal(size=shape) * 3 + 5).astype(dtype)

    def expected(feeds: Any) -> dict[str, Any]:
        step = oracle.train(layer, [feeds["x"]])
        return {"y": step.outputs[0], "m.next": step.mean, "v.next": step.var}

    model = batchnorm_model(layer, ["n", *shape[1:]], dtype=dtype)
    apply_and_check(
        ConvertSyncBatchNorm(),
        canonical(model),
        feeds={"x": x},
        expected=expected,
        rtol=units(dtype),
        **STATE,
    )


@pytest.mark.parametrize("rank", [2, 4])
def test_equals_the_runtimes_training_mode_kernel(rank: int) -> None:
    layer = make_layer(5)
    shape = [6, 5, 4, 3][:rank]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    native = batchnorm_model(layer, ["n", *shape[1:]], training=True)
    native.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [5])
        for name in ("next_mean", "next_var")
    )
    wanted = run(native, {"x": x})
    got = run(convert(batchnorm_model(layer, ["n", *shape[1:]])), {"x": x})
    for mine, theirs in (("y", "y"), ("m.next", "next_mean"), ("v.next", "next_var")):
        error = np.max(np.abs(got[mine] - wanted[theirs])) / np.max(np.abs(wanted[theirs]))
        assert error <= units(np.float32)


def test_float16_has_float32_statistics() -> None:
    layer = make_layer(3, dtype=np.float16)
    x = (np.random.default_rng(0).normal(size=(64, 3, 8)) + 300).astype(np.float16)
    got = run(convert(batchnorm_model(layer, ["n", 3, 8], dtype=np.float16)), {"x": x})
    step = oracle.train(layer, [x])
    assert got["v.next"].dtype == np.float16
    assert np.max(np.abs(got["y"] - step.outputs[0])) <= units(np.float16, 2) * np.max(
        np.abs(step.outputs[0])
    )
    np.testing.assert_allclose(got["v.next"], step.var, rtol=units(np.float16, 1))


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
def test_variance_survives_a_mean_far_from_zero(ratio: float) -> None:
    layer = make_layer(2, momentum=0.0)
    x = (np.random.default_rng(2).normal(size=(32, 2, 20)) + ratio).astype(np.float32)
    got = run(convert(batchnorm_model(layer, ["n", 2, 20])), {"x": x})
    np.testing.assert_allclose(got["v.next"], oracle.train(layer, [x]).var, rtol=1e-3)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_an_empty_batch_updates_nothing(shape: tuple[int, ...]) -> None:
    layer = make_layer(3)
    got = run(convert(batchnorm_model(layer, ["n", 3, "w"])), {"x": np.zeros(shape, np.float32)})
    assert got["y"].shape == shape
    assert np.array_equal(got["m.next"], layer.mean)
    assert np.array_equal(got["v.next"], layer.var)


def test_a_bad_batch_leaves_no_trace_in_the_session() -> None:
    """ONNX Runtime's training kernel writes over constants; a NaN must not stay there."""
    import onnxruntime

    layer = make_layer(3)
    model = convert(batchnorm_model(layer, ["n", 3, 4]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    first = session.run(None, {"x": x})
    session.run(None, {"x": x[:0]})
    session.run(None, {"x": np.full_like(x, np.nan)})
    for before, after in zip(first, session.run(None, {"x": x}), strict=True):
        assert np.array_equal(before, after)


def test_another_number_of_channels_is_refused_at_run_time() -> None:
    """A dynamic channel axis must not be folded into rows or columns."""
    import onnxruntime

    model = convert(batchnorm_model(make_layer(3), ["n", "c"]))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(model, {"x": np.zeros((4, 6), np.float32)})


def test_state_is_bound_and_can_be_fed() -> None:
    layer = make_layer(2)
    model = convert(batchnorm_model(layer, ["n", 2, 4]))
    (entry,) = model.training_info
    assert {pair.key: pair.value for pair in entry.update_binding} == {
        "m": "m.next",
        "v": "v.next",
    }
    x = np.random.default_rng(3).normal(size=(4, 2, 4)).astype(np.float32)
    first = run(model, {"x": x})
    second = run(model, {"x": x, "m": first["m.next"], "v": first["v.next"]})
    moved = oracle.train(
        oracle.Layer(
            layer.scale, layer.bias, first["m.next"], first["v.next"], layer.epsilon, layer.momentum
        ),
        [x],
    )
    np.testing.assert_allclose(second["m.next"], moved.mean, rtol=units(np.float32))
    np.testing.assert_allclose(second["v.next"], moved.var, rtol=units(np.float32))
    assert np.array_equal(first["y"], second["y"])


def test_a_layer_called_twice_has_one_state() -> None:
    model = canonical(spelling("layer_called_twice"))
    x = np.random.default_rng(4).normal(size=(6, 2, 5)).astype(np.float32)
    layer = oracle.Layer(
        float32(1.5, 0.5), float32(0.1, -0.2), float32(0.3, -0.4),
        float32(1.2, 0.8),
    )  # fmt: skip

    def expected(feeds: Any) -> dict[str, Any]:
        first = oracle.train(layer, [feeds["x"]])
        between = oracle.Layer(layer.scale, layer.bias, first.mean, first.var)
        second = oracle.train(between, [np.maximum(first.outputs[0], 0)])
        return {"y": second.outputs[0], "m.next": second.mean, "v.next": second.var}

    apply_and_check(
        ConvertSyncBatchNorm(),
        model,
        feeds={"x": x},
        expected=expected,
        rtol=units(np.float32),
        **STATE,
    )


def test_merged_initializers_are_independent_layers() -> None:
    model = convert(spelling("merged_initializers"))
    inputs = [list(node.input) for node in model.graph.node]
    states = [name for node in inputs for name in node[3:]]
    assert len(set(states)) == 4
    assert not set(states) & {name for node in inputs for name in node[1:3]}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert [values[name].tolist() for name in states] == [[0, 0], [1, 1]] * 2


def test_running_outputs_keep_their_names() -> None:
    model = convert(spelling("returned_running_statistics"))
    assert [output.name for output in model.graph.output] == ["y", "new_mean", "new_var"]
    (entry,) = model.training_info
    assert [(pair.key, pair.value) for pair in entry.update_binding] == [
        ("m", "new_mean"),
        ("v", "new_var"),
    ]


def test_names_stay_unique() -> None:
    model = batchnorm_model(make_layer(2), ["n", 2])
    model.graph.node[0].output[0] = "m.next"
    model.graph.output[0].name = "m.next"
    converted = convert(model)
    names = [output.name for output in converted.graph.output]
    assert names == ["m.next", "m.next_1", "v.next"]
    assert training_info.update_bindings(as_model(converted)) == {"m": "m.next_1", "v": "v.next"}


def test_a_collective_never_goes_into_a_body() -> None:
    subject = as_model(canonical(spelling("in_if_body")))
    records = ConvertSyncBatchNorm()(subject).records  # type: ignore[attr-defined]
    assert [(record.node, record.action) for record in records] == [
        ("outer", "converted"),
        ("inner", "skipped"),
    ]
    assert "control-flow body" in records[1].reason
    assert records[1].location == "If 'choose' then_branch"
    body = [node for node in subject.graph.all_nodes() if node.name == "inner"]
    assert body[0].op_type == "BatchNormalization"


def test_what_cannot_be_converted_is_left_alone_with_its_reason() -> None:
    subject = as_model(canonical(spelling("refused_parameters")))
    records = ConvertSyncBatchNorm()(subject).records  # type: ignore[attr-defined]
    assert {record.node: record.reason for record in records} == {
        "mean_is_fed": "input_mean 'fed_mean' is fed by the caller",
        "mean_is_overridable": "input_mean 'm2' is an overridable input that a caller may feed",
        "scale_is_computed": "scale 'doubled' is computed at run time",
        "convertible": "",
    }


def test_one_call_left_alone_keeps_the_whole_layer_alone() -> None:
    subject = as_model(canonical(spelling("layer_called_twice")))
    result = ConvertSyncBatchNorm(exclude=("call_2",))(subject)
    assert not result.modified
    reasons = [record.reason for record in result.records]  # type: ignore[attr-defined]
    assert reasons == ["one layer with node 'call_2', which is left alone (excluded)", "excluded"]


def test_wrong_lengths_are_refused() -> None:
    model = batchnorm_model(make_layer(2), ["n", 2, 4])
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "m"))
    subject = as_model(model)
    (record,) = ConvertSyncBatchNorm()(subject).records  # type: ignore[attr-defined]
    assert record.action == "skipped"
    assert record.reason == (
        "the numbers of channels differ: scale 2, B 2, input_mean 3, input_var 2, "
        "axis 1 of the input 2"
    )


def test_freeze_puts_a_training_mode_node_in_inference_mode() -> None:
    layer = make_layer(3)
    model = canonical(batchnorm_model(layer, ["n", 3, 4], training=True))
    x = np.random.default_rng(5).normal(size=(4, 3, 4)).astype(np.float32)
    rewritten, result = apply_and_check(
        ConvertSyncBatchNorm(freeze=("norm",)),
        model,
        feeds={"x": x},
        expected=lambda feeds: {"y": oracle.infer(layer, feeds["x"])},
        rtol=units(np.float32),
    )
    assert [record.action for record in result.records] == ["frozen"]
    assert not any(a.name == "training_mode" for a in rewritten.graph.node[0].attribute)


def test_include_and_exclude() -> None:
    subject = as_model(canonical(spelling("merged_initializers")))
    result = ConvertSyncBatchNorm(include=("^first$",))(subject)
    actions = [record.action for record in result.records]  # type: ignore[attr-defined]
    assert actions == ["converted", "skipped"]
