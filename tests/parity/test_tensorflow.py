"""The training form on N replicas against TensorFlow's synchronized layers on N devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import syncbn_convert
from syncbn_convert import ConvertOptions, SyncBatchNormalizationOptions
from syncbn_convert.passes.regularize_parameters import OUTPUT
from syncbn_convert.runtime import Communicator, ReplicaSession
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import LoadedForm
from tests.models import batchnorm_model
from tests.oracle import train
from tests.parity.cases import KINDS, STEPS, Case, Kind, parameter_cases, random_cases
from tests.parity.tensorflow_oracle import compute
from tests.sweeping import swept

Array = npt.NDArray[Any]

FLOAT32 = 5e-6
"""Relative to the largest magnitude of the tensor."""
FLOAT16 = float(np.finfo(np.float16).eps)
"""Both sides compute in float32, then round once: they differ by one unit in the last place."""


def form_of(case: Case) -> onnx.ModelProto:
    """The training form of one layer: a default node, and the layer's parameters as options."""
    shape = ["n", *(f"d{axis}" for axis in range(len(case.spatial) + 1))]
    layer = dataclasses.replace(case.layer(), epsilon=0.5, momentum=0.5)
    options = SyncBatchNormalizationOptions(
        axis=case.axis,
        momentum=case.momentum,
        epsilon=case.epsilon,
        center=case.center,
        scale=case.scale,
        **case.keywords,
    )
    form = syncbn_convert.convert(
        batchnorm_model(layer, shape, dtype=np.dtype(case.dtype)),
        ConvertOptions(parameters=options, reset=True),
        verify=False,
    )
    assert isinstance(form, onnx.ModelProto)
    return form


def run(case: Case) -> dict[str, Array]:
    """Results of all steps on as many replicas as the case has pieces."""
    form = LoadedForm(form_of(case))
    batches = case.batches()

    def replica(communicator: Communicator) -> dict[str, Array]:
        session = ReplicaSession(form, communicator)
        found: dict[str, Array] = {}
        for number, pieces in enumerate(batches):
            result = session.step({"x": pieces[communicator.rank]})
            found[f"{number}/y{communicator.rank}"] = result.outputs["y"]
            found[f"{number}/mean"] = session.state["m"]
            found[f"{number}/var"] = session.state["v"]
            if OUTPUT in result.outputs:
                found[f"{number}/loss"] = result.outputs[OUTPUT]
        return found

    results = on_threads(len(case.pieces), replica, timeout=30)
    for other in results[1:]:
        for name in results[0].keys() & other.keys():
            np.testing.assert_array_equal(other[name], results[0][name])
    return {name: value for found in results for name, value in found.items()}


def differences(
    case: Case, got: Mapping[str, Array], wanted: Mapping[str, Array]
) -> list[tuple[str, float, float]]:
    """Each result's name, error relative to its largest magnitude, and what is allowed."""
    assert got.keys() == wanted.keys(), case
    found = []
    for name, reference in wanted.items():
        assert got[name].shape == reference.shape, (case, name)
        assert got[name].dtype == reference.dtype, (case, name)
        exact = reference.astype(np.float64)
        error = np.max(np.abs(got[name].astype(np.float64) - exact)) / np.max(np.abs(exact))
        allowed = FLOAT16 if reference.dtype == np.float16 else FLOAT32
        found.append((name, float(error), allowed))
    return found


def of_case(results: Mapping[str, Array], index: int) -> dict[str, Array]:
    prefix = f"{index}/"
    return {
        name.removeprefix(prefix): value
        for name, value in results.items()
        if name.startswith(prefix)
    }


def require_equal(cases: Sequence[Case], wanted: Mapping[str, Array]) -> None:
    failures = [
        f"{case}: {name}: {error:.2g} > {allowed:.2g}"
        for index, case in enumerate(cases)
        for name, error, allowed in differences(case, run(case), of_case(wanted, index))
        if not error <= allowed
    ]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("replicas", [swept(8), 4, swept(2), swept(1)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_synchronized_layer(kind: Kind, replicas: int, tmp_path: Path) -> None:
    cases = random_cases(kind, replicas)
    assert len(cases) == 32
    wanted = compute(kind, cases, tmp_path)
    assert len(wanted) == len(cases) * STEPS * (replicas + 2)
    require_equal(cases, wanted)


@pytest.mark.parametrize("replicas", [swept(4), 2, swept(1)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_layer_of_given_parameters(kind: Kind, replicas: int, tmp_path: Path) -> None:
    """Dropped gamma and beta, initializers; the regularization loss is that of one replica."""
    cases = parameter_cases(kind, replicas)
    wanted = compute(kind, cases, tmp_path)
    assert sum("loss" in name for name in wanted) == 4 * STEPS
    require_equal(cases, wanted)


def far_cases(ratios: Sequence[float]) -> list[Case]:
    """Two replicas with 24 and 40 samples; with momentum 0 the state is the batch variance."""
    return [
        Case(
            seed=7,
            pieces=(24, 40),
            channels=3,
            spatial=(8,),
            axis=1,
            dtype="float32",
            epsilon=1e-3,
            momentum=0.0,
            ratio=ratio,
        )
        for ratio in ratios
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_variance_survives_a_mean_far_from_zero(kind: Kind, tmp_path: Path) -> None:
    """TensorFlow computes E[x^2] - E[x]^2 in float32, and loses the variance."""
    cases = far_cases([1.0, 1e2, 1e4])
    theirs = compute(kind, cases, tmp_path)
    print("|mean|/std    largest relative error of the variance: ours, TensorFlow's")
    for index, case in enumerate(cases):
        exact = train(case.layer(), case.batches()[0]).var
        mine, other = (
            float(np.max(np.abs(found.astype(np.float64) - exact) / exact))
            for found in (run(case)["0/var"], theirs[f"{index}/0/var"])
        )
        print(f"{case.ratio:10g}    {mine:.2g}, {other:.2g}")
        assert mine <= 1e-3
    assert other > 0.1
