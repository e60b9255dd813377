"""Normalization given back where it was fused away, and trained statistics on top of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

import syncbn_convert
from syncbn_convert import (
    CalibrateOptions,
    ConversionError,
    ReplicaOptions,
    UnfuseOptions,
    UsageError,
)
from tests.fusion import cases
from tests.fusion.judge import run
from tests.models import DIGITS, ocr_model

Array = npt.NDArray[Any]

DATA = DIGITS.parent / "digits_train.npz"
ROUNDING = 64 * float(np.finfo(np.float32).eps)


def samples(model: onnx.ModelProto, count: int, path: Path) -> Path:
    """Write random samples for a model's only input, whose first axis has a fixed size."""
    (info,) = (i for i in model.graph.input if i.name == "x")
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    shape[0] *= count
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.savez(path, x=values)
    return path


def batchnorms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def unfuse(model: onnx.ModelProto, *arguments: Any, **named: Any) -> onnx.ModelProto:
    unfused = syncbn_convert.unfuse(model, *arguments, **named)
    assert isinstance(unfused, onnx.ModelProto)
    return unfused


@pytest.mark.parametrize("replicas", [1, 2])
def test_unfused_model_is_the_same_function_and_fuses_back(replicas: int) -> None:
    fused = syncbn_convert.fuse(onnx.load(DIGITS), verify=False)
    assert isinstance(fused, onnx.ModelProto)
    assert not batchnorms(fused)
    unfused = unfuse(fused, DATA, replicas=ReplicaOptions(replicas=replicas))
    assert [node.name for node in batchnorms(unfused)] == [
        f"{layer}/batchnorm"
        for layer in ("stem_conv/Conv", "depthwise_conv", "residual_conv", "down_conv", "hidden",
                      "logits/MatMul")
    ]  # fmt: skip
    assert syncbn_convert.verify(fused, unfused).equal
    again = syncbn_convert.fuse(unfused)
    assert isinstance(again, onnx.ModelProto)
    assert not batchnorms(again)
    assert [node.op_type for node in again.graph.node] == [
        node.op_type for node in fused.graph.node
    ]
    assert syncbn_convert.verify(fused, again).equal


def test_statistics_are_those_of_the_population() -> None:
    """Also of layers after others: what measures must not change what is measured."""
    fused = syncbn_convert.fuse(onnx.load(DIGITS), verify=False)
    assert isinstance(fused, onnx.ModelProto)
    unfused = unfuse(fused, DATA, UnfuseOptions(epsilon=1e-4))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in unfused.graph.initializer}
    inner = onnx.ModelProto()
    inner.CopyFrom(fused)
    inner.graph.output.append(onnx.ValueInfoProto(name="down_conv"))
    (value,) = (node.output[0] for node in fused.graph.node if node.name == "down_conv")
    inner.graph.output[-1].name = value
    with np.load(DATA) as data:
        found = run(inner, {"image": data["image"]})[value].astype(np.float64)
    mean, var = found.mean(axis=(0, 2, 3)), found.var(axis=(0, 2, 3))
    size = np.abs(mean) + np.sqrt(var)
    prefix = "down_conv/batchnorm"
    assert (np.abs(arrays[f"{prefix}/moving_mean"] - mean) <= ROUNDING * size).all()
    assert (np.abs(arrays[f"{prefix}/moving_variance"] - var) <= ROUNDING * size**2).all()
    np.testing.assert_array_equal(arrays[f"{prefix}/beta"], arrays[f"{prefix}/moving_mean"])
    wide = arrays[f"{prefix}/moving_variance"].astype(np.float64)
    gamma = np.sqrt(wide + np.float64(np.float32(1e-4))).astype(np.float32)
    np.testing.assert_array_equal(arrays[f"{prefix}/gamma"], gamma)


def test_a_fused_recognizer_is_converted_and_calibrated_on_two_replicas(tmp_path: Path) -> None:
    original = ocr_model("rec")
    fused = tmp_path / "fused.onnx"
    syncbn_convert.fuse_file(original, fused, verify=False)
    assert not batchnorms(onnx.load(fused))
    data = tmp_path / "lines.npz"
    images = np.random.default_rng(0).uniform(-1, 1, (6, 3, 48, 64)).astype(np.float32)
    (name,) = (i.name for i in onnx.load(fused).graph.input)
    arrays: dict[str, Any] = {name: images}
    np.savez(data, **arrays)
    unfused = tmp_path / "unfused.onnx"
    done = syncbn_convert.unfuse_file(
        fused,
        data,
        unfused,
        UnfuseOptions(batch_size=3, include=("^Conv|p2o.Conv|conv",)),
        verify_options=syncbn_convert.VerifyOptions(input_shapes={name: (2, 3, 48, 64)}),
    )
    assert done is not None
    assert done[1].verified
    assert done[1].converted == len(batchnorms(onnx.load(unfused))) > 3
    form = syncbn_convert.convert(str(unfused), verify=False)
    model, report = syncbn_convert.calibrate_with_report(
        form, data, CalibrateOptions(batch_size=4), replicas=ReplicaOptions(replicas=2)
    )
    assert report.replicas == 2
    assert report.samples == 6
    assert len(report.layers) == done[1].converted
    del model


@pytest.mark.parametrize(
    "name",
    ["conv", "conv grouped", "transposed conv group 2", "gemm row bias", "gemm transB", "matmul",
     "matmul add", "conv 1-D"],
)  # fmt: skip
def test_every_kind_of_layer(name: str, tmp_path: Path) -> None:
    fused = syncbn_convert.fuse(cases.case(name).model, verify=False)
    assert isinstance(fused, onnx.ModelProto)
    assert not batchnorms(fused)
    shape = [dim.dim_value for dim in fused.graph.input[0].type.tensor_type.shape.dim]
    data = samples(fused, 3, tmp_path / "x.npz")
    unfused = unfuse(fused, data, UnfuseOptions(batch_size=shape[0]))
    assert len(batchnorms(unfused)) == 1
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    wanted, got = run(fused, {"x": x})["y"], run(unfused, {"x": x})["y"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max())


def test_what_has_no_place_is_refused_with_its_reason(tmp_path: Path) -> None:
    last = cases.case("matmul rank 3, channels not last").model
    for options, model, message in (
        (UnfuseOptions(), last, "its channels are not at axis 1"),
        (UnfuseOptions(), cases.case("conv").model, "is normalized already"),
        (UnfuseOptions(include=("nothing",)), cases.case("conv").model, "matches no layer"),
        (UnfuseOptions(), syncbn_convert.convert(onnx.load(DIGITS), verify=False), "fold it first"),
    ):
        with pytest.raises(ConversionError, match=message):
            syncbn_convert.unfuse(model, DATA, options)
    with pytest.raises(UsageError, match="epsilon above 0"):
        UnfuseOptions(epsilon=0)
    with pytest.raises(UsageError, match="not a regular expression"):
        UnfuseOptions(include=("(",))
    del tmp_path
