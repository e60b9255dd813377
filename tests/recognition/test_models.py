"""From a model whose normalization was taken apart to the training form and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import (
    ConversionError,
    ConvertOptions,
    StepOptions,
    UsageError,
    VerificationError,
)
from syncbn_convert.commands.statistics import extract_statistics, statistics_to_file
from syncbn_convert.files.model_file import as_model
from syncbn_convert.form.moving_statistics import load
from syncbn_convert.passes.recognition import proof
from syncbn_convert.passes.recognition.matching import Finder
from syncbn_convert.passes.recognition.parameters import constant_values
from tests.harness import run, spelling

EPS = float(np.finfo(np.float32).eps)


def decomposed(gamma: tuple[float, float] = (1.5, 0.5)) -> onnx.ModelProto:
    model = spelling("decomposed_by_tf2onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "gamma")
    tensor.CopyFrom(onh.from_array(np.array(gamma, np.float32), "gamma"))
    return model


@pytest.mark.parametrize("gamma", [(1.5, 0.5), (1.0, 1.0), (0.0, 0.0)])
def test_form_on_one_replica_returns_what_the_export_does(gamma: tuple[float, float]) -> None:
    """A gamma of ones equals the moving variance, with which ONNX Runtime merges it."""
    model = decomposed(gamma)
    form, report = syncbn_convert.convert_with_report(model)
    assert report.verified
    assert [(record.node, record.action) for record in report.records] == [("net/bn", "converted")]
    assert report.records[0].detail["changes"] == ["recognized in 14 nodes"]
    assert isinstance(form, onnx.ModelProto)
    x = np.random.default_rng(0).normal(1, 2, size=(4, 6, 6, 3)).astype(np.float32)
    found, wanted = run(form, {"x": x}), run(model, {"x": x})["y"]
    assert np.abs(found["y"] - wanted).max() <= 32 * EPS * max(np.abs(wanted).max(), 1e-30)
    c = np.einsum("nhwc,kc->nkhw", x, onh.to_array(model.graph.initializer[0])[:, :, 0, 0])
    moved = {"mean": 0.01 * c.mean((0, 2, 3)), "variance": 0.99 + 0.01 * c.var((0, 2, 3))}
    for name, values in moved.items():
        np.testing.assert_allclose(found[f"net/bn/moving_{name}.next"], values, rtol=64 * EPS)


def test_fold_gives_batchnormalization() -> None:
    folded = syncbn_convert.fold(syncbn_convert.convert(decomposed()))
    assert isinstance(folded, onnx.ModelProto)
    (node,) = [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    assert list(node.input[1:]) == ["gamma", "beta", "net/bn/moving_mean", "net/bn/moving_variance"]
    assert len(node.output) == 1
    report = syncbn_convert.inspect(folded)
    assert [info.op_type for info in report.nodes] == ["BatchNormalization"]


def test_inspect_calls_it_decomposed() -> None:
    (info,) = syncbn_convert.inspect(decomposed()).nodes
    assert (info.op_type, info.name, info.channels) == ("decomposed", "net/bn", 2)
    assert info.training_mode
    assert info.convertible


def test_not_asked_for() -> None:
    with pytest.raises(ConversionError, match="holds no BatchNormalization"):
        syncbn_convert.convert(decomposed(), ConvertOptions(recognize=False))
    with pytest.raises(ConversionError, match="cannot be frozen: its moving statistics"):
        syncbn_convert.convert(decomposed(), ConvertOptions(freeze=("bn",)))
    with pytest.raises(ConversionError, match="'net/bn': excluded"):
        syncbn_convert.convert(decomposed(), ConvertOptions(exclude=("bn",)))
    with pytest.raises(UsageError, match="recognize_affine needs recognize"):
        ConvertOptions(recognize=False, recognize_affine=True)


def test_proof_fails_for_other_parameters() -> None:
    model = as_model(decomposed())
    (match,) = Finder(model, model.graph, affine=False).find()
    values, epsilon = constant_values(match, model)
    assert proof.holds(match, values, epsilon, model)
    assert not proof.holds(match, values, epsilon * 1.001, model)
    assert not proof.holds(match, {**values, "B": values["B"] + 1e-6}, epsilon, model)
    assert not proof.holds(match, {**values, "scale": values["scale"][::-1]}, epsilon, model)
    assert not proof.holds(match, {**values, "input_mean": np.zeros(2)}, epsilon, model)


def test_verification_sees_a_wrong_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model is run before and after, whatever was proven."""
    monkeypatch.setattr(
        "syncbn_convert.passes.recognition.replacing.constant_values",
        lambda match, model: (constant_values(match, model)[0], 0.5),
    )
    with pytest.raises(VerificationError, match="differs from its original"):
        syncbn_convert.convert(decomposed())


def with_native_node(*, reads: str) -> onnx.ModelProto:
    """A decomposed normalization beside a BatchNormalization that an exporter left in training."""
    model = decomposed()
    graph = model.graph
    values = {"s": [1.5, 0.5], "b": [0.1, -0.2], "m": [0.3, -0.4], "v": [1.2, 0.8]}
    graph.initializer.extend(
        onh.from_array(np.array(value, np.float32), name) for name, value in values.items()
    )
    outputs = ["y2", "new_mean", "new_var"]
    graph.node.append(
        oh.make_node("BatchNormalization", ["c", *values], outputs, name="native", training_mode=1)
    )
    graph.output.append(oh.make_tensor_value_info("y2", 1, ["n", 2, 6, 6]))
    if reads == "running statistic":
        graph.node.append(oh.make_node("Neg", ["new_mean"], ["z"], name="reader"))
    elif reads == "moving statistic":
        graph.node.append(oh.make_node("Neg", ["m"], ["z"], name="reader"))
    if reads.endswith("statistic"):
        graph.output.append(oh.make_tensor_value_info("z", 1, [2]))
    if reads == "outputs":
        graph.output.extend(oh.make_tensor_value_info(name, 1, [2]) for name in outputs[1:])
    if reads == "initializer":
        graph.output.append(oh.make_tensor_value_info("v", 1, [2]))
    return model


@pytest.mark.parametrize(
    "reads", ["nothing", "outputs", "running statistic", "moving statistic", "initializer"]
)
def test_verification_leaves_statistics_that_something_reads(reads: str) -> None:
    form, report = syncbn_convert.convert_with_report(with_native_node(reads=reads))
    assert report.verified
    assert isinstance(form, onnx.ModelProto)
    assert {record.node for record in report.records} == {"net/bn", "native"}
    assert report.converted == 2


def test_every_command_takes_what_convert_takes(tmp_path: Path) -> None:
    model = decomposed()
    x = np.random.default_rng(0).normal(1, 2, size=(8, 6, 6, 3)).astype(np.float32)
    data = tmp_path / "data.npz"
    np.savez(data, x=x)
    c = np.einsum("nhwc,kc->nkhw", x, onh.to_array(model.graph.initializer[0])[:, :, 0, 0])
    calibrated = syncbn_convert.calibrate(model, data)
    assert isinstance(calibrated, onnx.ModelProto)
    for name, wanted in {"mean": c.mean((0, 2, 3)), "variance": c.var((0, 2, 3))}.items():
        (found,) = (
            onh.to_array(tensor)
            for tensor in calibrated.graph.initializer
            if tensor.name == f"net/bn/moving_{name}"
        )
        np.testing.assert_allclose(found, wanted, rtol=64 * EPS)
    onnx.save(model, tmp_path / "model.onnx")
    statistics = tmp_path / "moving.safetensors"
    statistics_to_file(tmp_path / "model.onnx", statistics)
    form = syncbn_convert.convert(model)
    assert extract_statistics(form).layers_digest == load(statistics).layers_digest
    step = syncbn_convert.step(model, StepOptions(loss="mse", labels="label"))
    assert {"gamma", "beta", "w"} <= set(step.parameters)
    unfused = syncbn_convert.unfuse(model, data)
    assert isinstance(unfused, onnx.ModelProto)
    assert "BatchNormalization" in [node.op_type for node in unfused.graph.node]
