"""trainable, training, synchronized, variance and group_size against the real layers."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import syncbn_convert
from syncbn_convert import ConvertOptions, SyncBatchNormalizationOptions, run_replicas
from tests import harness, oracle
from tests.models import batchnorm_model
from tests.parity.cases import KINDS, Case, Kind
from tests.parity.tensorflow_oracle import compute
from tests.sweeping import swept

Array = npt.NDArray[Any]

ROUNDING = 32 * float(np.finfo(np.float32).eps)


def case_of(*pieces: int, **changes: Any) -> Case:
    return Case(
        seed=11,
        pieces=pieces,
        channels=4,
        spatial=(3,),
        axis=1,
        dtype="float32",
        epsilon=1e-3,
        momentum=0.6,
        ratio=0.5,
        **changes,
    )


def convert(case: Case, **options: Any) -> onnx.ModelProto:
    form = syncbn_convert.convert(
        batchnorm_model(case.layer(), ["n", 4, 3]),
        ConvertOptions(parameters=SyncBatchNormalizationOptions(**options)),
    )
    assert isinstance(form, onnx.ModelProto)
    return form


def close(got: Array, wanted: Array, factor: float = 1.0) -> None:
    size = float(np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=factor * ROUNDING * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keyword", ["trainable", "training"])
@pytest.mark.parametrize("replicas", [swept(1), 2, swept(4)])
def test_frozen_layers_keep_their_statistics(
    kind: Kind, keyword: str, replicas: int, tmp_path: Path
) -> None:
    case = case_of(*range(2, 2 + replicas), call={keyword: False})
    theirs = compute(kind, [case], tmp_path)
    model = convert(case, **{keyword: False})
    for step, pieces in enumerate(case.batches()):
        np.testing.assert_array_equal(theirs[f"0/{step}/mean"], case.layer().mean)
        np.testing.assert_array_equal(theirs[f"0/{step}/var"], case.layer().var)
        for rank, piece in enumerate(pieces):
            outputs = harness.run(model, {"x": piece})
            assert list(outputs) == ["y"]
            close(outputs["y"], theirs[f"0/{step}/y{rank}"])


@pytest.mark.parametrize("replicas", [swept(1), 2, swept(4)])
def test_unsynchronized_replicas_are_keras_layers_apart(replicas: int, tmp_path: Path) -> None:
    """Each replica's own step equals one Keras layer that sees that piece alone."""
    sizes = range(3, 3 + replicas)
    whole = case_of(*sizes)
    form = convert(whole, synchronized=False)
    assert {node.domain for node in form.graph.node} == {""}
    assert not form.functions
    cases = [dataclasses.replace(case_of(size, call={"synchronized": False})) for size in sizes]
    theirs = compute("keras", cases, tmp_path)
    for index, case in enumerate(cases):
        (piece,) = case.batches()[0]
        got = harness.run(form, {"x": piece})
        close(got["y"], theirs[f"{index}/0/y0"])
        close(got["m.next"], theirs[f"{index}/0/mean"])
        close(got["v.next"], theirs[f"{index}/0/var"], 8)


def test_unsynchronized_form_folds_back_to_the_original() -> None:
    case = case_of(2)
    model = batchnorm_model(case.layer(), ["n", 4, 3])
    canonical = syncbn_convert.fold(syncbn_convert.convert(model))
    folded = syncbn_convert.fold(convert(case, synchronized=False))
    assert isinstance(folded, onnx.ModelProto)
    assert isinstance(canonical, onnx.ModelProto)
    assert folded.SerializeToString() == canonical.SerializeToString()


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_unbiased_variance_is_that_of_torch_and_of_float64(replicas: int) -> None:
    case = case_of(*range(3, 3 + replicas))
    layer, pieces = case.layer(), case.batches()[0]
    form = convert(case, variance="unbiased")
    results = run_replicas(form, [{"x": piece} for piece in pieces])
    union = np.concatenate(pieces)

    torch = importlib.import_module("torch")
    theirs = torch.nn.BatchNorm1d(4, eps=case.epsilon, momentum=1 - case.momentum)
    for name, value in (
        ("weight", layer.scale),
        ("bias", layer.bias),
        ("running_mean", layer.mean),
        ("running_var", layer.var),
    ):
        getattr(theirs, name).data = torch.tensor(value)
    outputs = theirs(torch.tensor(union)).detach().numpy()

    rows = union.astype(np.float64).transpose(0, 2, 1).reshape(-1, 4)
    exact = layer.var * 0.6 + rows.var(axis=0, ddof=1) * 0.4
    close(np.concatenate([result["y"] for result in results]), outputs)
    for result in results:
        close(result["v.next"], theirs.running_var.numpy())
        close(result["v.next"], exact)
        close(result["m.next"], theirs.running_mean.numpy())


def test_unbiased_variance_of_one_sample_updates_nothing() -> None:
    layer = case_of(1).layer()
    form = syncbn_convert.convert(
        batchnorm_model(layer, ["n", 4]),
        ConvertOptions(parameters=SyncBatchNormalizationOptions(variance="unbiased")),
    )
    feeds = [{"x": np.ones((1, 4), np.float32)}, {"x": np.ones((0, 4), np.float32)}]
    for result in run_replicas(form, feeds):
        np.testing.assert_array_equal(result["m.next"], layer.mean)
        np.testing.assert_array_equal(result["v.next"], layer.var)
        assert np.isfinite(result["y"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_as_many_strategies(kind: Kind, tmp_path: Path) -> None:
    """Four replicas in groups of two equal two MirroredStrategies of two devices each."""
    groups = [case_of(3, 5), dataclasses.replace(case_of(2, 4), seed=11)]
    theirs = compute(kind, groups, tmp_path)
    pieces = [piece for group in groups for piece in group.batches()[0]]
    form = convert(groups[0], group_size=2)
    results = run_replicas(form, [{"x": piece} for piece in pieces])
    for rank, result in enumerate(results):
        group, own = divmod(rank, 2)
        close(result["y"], theirs[f"{group}/0/y{own}"])
        close(result["m.next"], theirs[f"{group}/0/mean"])
        close(result["v.next"], theirs[f"{group}/0/var"], 8)
    exact = oracle.train(groups[1].layer(), groups[1].batches()[0])
    close(results[3]["v.next"], exact.var)
    assert not np.allclose(results[0]["m.next"], results[3]["m.next"], rtol=1e-3)


def test_groups_that_do_not_divide_the_replicas_are_refused() -> None:
    form = convert(case_of(1), group_size=2)
    feeds = [{"x": np.ones((1, 4, 3), np.float32)}] * 3
    with pytest.raises(syncbn_convert.SyncBNError, match=r"2.*3|3.*2"):
        run_replicas(form, feeds)
