"""From a model whose normalization was taken apart to the training form and back."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import ConversionError, ConvertOptions, UsageError, VerificationError
from syncbn_convert.model_file import as_model
from syncbn_convert.recognition import proof
from syncbn_convert.recognition.matching import Finder
from syncbn_convert.recognition.parameters import constant_values
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
        "syncbn_convert.recognition.replacing.constant_values",
        lambda match, model: (constant_values(match, model)[0], 0.5),
    )
    with pytest.raises(VerificationError, match="differs from its original"):
        syncbn_convert.convert(decomposed())
