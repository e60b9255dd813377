"""Losses against their definitions in float64, whole and in uneven pieces on replicas."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from syncbn_convert import SyncBatchNormalizationOptions, convert
from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.options.keras_objects import Regularizer
from syncbn_convert.options.rewrites import ConvertOptions
from syncbn_convert.passes import AddLoss
from syncbn_convert.runtime import Communicator, ReplicaSession
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import LoadedForm
from tests.harness import apply_and_check, run
from tests.models import batchnorm_model, make_layer

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

FLOAT32 = 4 * float(np.finfo(np.float32).eps)
"""Each term is computed in float32 and rounded a few times; sums are float64."""


def model_of(body: str, *, shape: str = "n,4", dtype: str = "float") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> g ({dtype}[{shape}] z) => ({dtype}[{shape}] p) '
        f"{{ {body} }}"
    )


def cross_entropy(z: Array, label: Array, axis: int = -1) -> float:
    z = np.moveaxis(z.astype(np.float64), axis, -1)
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    return float(-np.log(np.take_along_axis(p, label[..., None], axis=-1)).mean())


def loss_of(model: onnx.ModelProto, rewrite: AddLoss, feeds: Feeds) -> float:
    rewritten, result = (
        apply_and_check(rewrite, model, added_inputs=[rewrite.labels or ""], added_outputs=["loss"])
        if rewrite.labels
        else apply_and_check(rewrite, model, added_outputs=["loss"])
    )
    assert [record.action for record in result.records] == ["loss added"]
    loss = run(rewritten, feeds)["loss"]
    assert loss.shape == ()
    assert loss.dtype == np.float32
    return float(loss)


@pytest.mark.parametrize(
    "body",
    [
        "p = Softmax(z)",
        "q = Softmax(z) p = Identity(q)",
        "p = LogSoftmax(z)",
        "p = Identity(z)",
    ],
)
def test_softmax_cross_entropy(body: str) -> None:
    random = np.random.default_rng(0)
    z = (10 * random.normal(size=(7, 4))).astype(np.float32)
    label = random.integers(4, size=7)
    rewrite = AddLoss(loss="softmax-cross-entropy", labels="label")
    found = loss_of(model_of(body), rewrite, {"z": z, "label": label})
    assert found == pytest.approx(cross_entropy(z, label), rel=FLOAT32)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_types_compute_in_float32_or_wider(dtype: str) -> None:
    random = np.random.default_rng(1)
    z = random.normal(size=(7, 4)).astype(np.float64 if dtype == "double" else np.float16)
    label = random.integers(4, size=7)
    rewrite = AddLoss(loss="softmax-cross-entropy", labels="label")
    found = loss_of(model_of("p = Softmax(z)", dtype=dtype), rewrite, {"z": z, "label": label})
    assert found == pytest.approx(cross_entropy(z, label), rel=FLOAT32)


@pytest.mark.parametrize("axis", [1, -1])
def test_classes_of_each_pixel(axis: int) -> None:
    random = np.random.default_rng(2)
    z = random.normal(size=(3, 4, 5, 4)).astype(np.float32)
    label = random.integers(4, size=(3, 4, 5) if axis == -1 else (3, 5, 4))
    model = model_of(f"p = Softmax<axis: int = {axis}>(z)", shape="n,4,5,4")
    rewrite = AddLoss(loss="softmax-cross-entropy", labels="label")
    found = loss_of(model, rewrite, {"z": z, "label": label})
    assert found == pytest.approx(cross_entropy(z, label, axis), rel=FLOAT32)


@pytest.mark.parametrize("body", ["p = Sigmoid(z)", "p = Identity(z)"])
def test_binary_cross_entropy(body: str) -> None:
    random = np.random.default_rng(3)
    z = (20 * random.normal(size=(7, 4))).astype(np.float32)
    label = random.integers(2, size=(7, 4)).astype(np.float32)
    p = 1 / (1 + np.exp(-np.where(label, z, -z).astype(np.float64)))
    rewrite = AddLoss(loss="binary-cross-entropy", labels="label")
    found = loss_of(model_of(body), rewrite, {"z": z, "label": label})
    assert found == pytest.approx(float(-np.log(p).mean()), rel=FLOAT32)


def test_mean_squared_error() -> None:
    random = np.random.default_rng(4)
    z, label = random.normal(size=(2, 7, 4)).astype(np.float32)
    rewrite = AddLoss(loss="mse", labels="label")
    found = loss_of(model_of("p = Identity(z)"), rewrite, {"z": z, "label": label})
    wanted = float(((z.astype(np.float64) - label) ** 2).mean())
    assert found == pytest.approx(wanted, rel=FLOAT32)


@pytest.mark.parametrize("samples", [5, 0])
def test_scalar_output_of_the_model(samples: int) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[n,4] z) => (float own) '
        "{ own = ReduceMean <keepdims: int = 0>(z) }"
    )
    z = np.random.default_rng(5).normal(size=(samples, 4)).astype(np.float32)
    found = loss_of(model, AddLoss(loss="own"), {"z": z})
    wanted = float(z.astype(np.float64).mean()) if samples else 0.0
    assert found == pytest.approx(wanted, rel=10 * FLOAT32)


PIECES = (3, 0, 9)


def on_pieces(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> list[float]:
    form = LoadedForm(model)

    def replica(communicator: Communicator) -> float:
        session = ReplicaSession(form, communicator)
        return float(session.step(feeds[communicator.rank]).outputs["loss"])

    return on_threads(len(feeds), replica, timeout=30)


def test_replicas_agree_on_the_mean_over_the_global_batch() -> None:
    """Cross entropy of uneven pieces, one empty, and penalties that count once."""
    penalty = Regularizer(l1=0.0, l2=0.25)
    options = ConvertOptions(parameters=SyncBatchNormalizationOptions(gamma_regularizer=penalty))
    layer = make_layer(4)
    form = convert(batchnorm_model(layer, ["n", 4], opset=18), options, verify=False)
    assert isinstance(form, onnx.ModelProto)
    subject = model_file.as_model(form)
    AddLoss(loss="softmax-cross-entropy", labels="label")(subject)
    with_loss = model_file.to_proto(subject)
    random = np.random.default_rng(6)
    x = random.normal(size=(sum(PIECES), 4)).astype(np.float32)
    label = random.integers(4, size=len(x))
    bounds = np.cumsum([0, *PIECES])
    feeds: list[Feeds] = [
        {"x": x[low:high], "label": label[low:high]} for low, high in itertools.pairwise(bounds)
    ]
    found = on_pieces(with_loss, feeds)
    assert len(set(found)) == 1
    mean, var = x.astype(np.float64).mean(axis=0), x.astype(np.float64).var(axis=0)
    y = (x - mean) / np.sqrt(var + layer.epsilon) * layer.scale + layer.bias
    wanted = cross_entropy(y, label) + 0.25 * float((layer.scale.astype(np.float64) ** 2).sum())
    assert found[0] == pytest.approx(wanted, rel=10 * FLOAT32)


@pytest.mark.parametrize(
    ("rewrite", "model", "message"),
    [
        (AddLoss(loss="mse", labels="z"), model_of("p = Identity(z)"), "value named 'z' of its"),
        (AddLoss(loss="mse"), model_of("p = Identity(z)"), "compares with labels"),
        (AddLoss(loss="hinge"), model_of("p = Identity(z)"), "is neither softmax-cross-entropy,"),
        (AddLoss(loss="p"), model_of("p = Identity(z)"), "a loss is a scalar"),
        (
            AddLoss(loss="mse", labels="l", output="q"),
            model_of("p = Identity(z)"),
            "no output 'q' to compare; it has 'p'",
        ),
        (
            AddLoss(loss="softmax-cross-entropy", labels="l"),
            model_of("p = Identity(z)", shape="n,4,5"),
            "name it with --class-axis",
        ),
        (
            AddLoss(loss="mse", labels="l"),
            model_of("p = Identity(z)", dtype="int32"),
            "has element type",
        ),
    ],
)
def test_refusals(rewrite: AddLoss, model: onnx.ModelProto, message: str) -> None:
    subject = model_file.as_model(model)
    before = model_file.to_proto(subject).SerializeToString(deterministic=True)
    with pytest.raises(ConversionError, match=message):
        rewrite.call(subject)
    assert model_file.to_proto(subject).SerializeToString(deterministic=True) == before


def test_another_loss_on_top_is_refused() -> None:
    subject = model_file.as_model(model_of("p = Softmax(z)"))
    AddLoss(loss="mse", labels="label")(subject)
    with pytest.raises(ConversionError, match="has the loss 'mse label' already"):
        AddLoss(loss="softmax-cross-entropy", labels="label").call(subject)
