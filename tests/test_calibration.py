"""Precise statistics are those of all values seen, whatever the batches, pieces and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from syncbn_convert import CalibrateOptions, ReplicaError
from syncbn_convert.form.stateful_layers import Layer
from syncbn_convert.runtime import Communicator
from syncbn_convert.runtime.calibration import PreciseStatistics, calibrate_replica
from syncbn_convert.runtime.datasets import open_dataset
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import LoadedForm
from tests.models import make_layer
from tests.runtime.test_session import form_of

Float64 = npt.NDArray[np.float64]

UNITS = 16 * float(np.finfo(np.float64).eps)


def layer_of(*, unbiased: bool, calls: int = 1) -> Layer:
    return Layer("norm", "m", "v", 3, 0.9, 1e-3, unbiased, list(range(calls)))


def total_of(rows: Float64) -> Float64:
    return np.concatenate([[float(len(rows))], rows.sum(axis=0), (rows**2).sum(axis=0)])


def draw(count: int, seed: int = 0) -> Float64:
    return np.random.default_rng(seed).normal(size=(count, 3))


@pytest.mark.parametrize("unbiased", [False, True])
def test_batches_and_calls_add_up(unbiased: bool) -> None:
    rows = draw(7)
    statistics = PreciseStatistics([layer_of(unbiased=unbiased, calls=2)])
    statistics.add([total_of(rows[:1]), total_of(rows[1:3])])
    statistics.add([total_of(rows[3:]), total_of(rows[:0])])
    found = statistics.result()
    np.testing.assert_allclose(found["m"], rows.mean(axis=0), rtol=UNITS, atol=UNITS)
    np.testing.assert_allclose(found["v"], rows.var(axis=0, ddof=int(unbiased)), rtol=UNITS)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_variance_needs_a_degree_of_freedom(unbiased: bool) -> None:
    statistics = PreciseStatistics([layer_of(unbiased=unbiased)])
    statistics.add([total_of(draw(int(unbiased)))])
    with pytest.raises(ReplicaError, match=f"node 'norm' saw {int(unbiased)} values per channel"):
        statistics.result()


@pytest.mark.parametrize("unbiased", [False, True])
def test_equal_values_have_no_variance(unbiased: bool) -> None:
    statistics = PreciseStatistics([layer_of(unbiased=unbiased)])
    statistics.add([total_of(np.ones((1 + unbiased, 3)))])
    assert np.array_equal(statistics.result()["v"], np.zeros(3))


@pytest.mark.parametrize("unbiased", [0, 1])
@pytest.mark.parametrize(("replicas", "group_size"), [(1, 0), (3, 0), (4, 2)])
def test_replicas_find_the_statistics_of_all_samples(
    replicas: int, group_size: int, unbiased: int
) -> None:
    """Batches of two leave pieces empty, and so does the last one of a single sample."""
    form = LoadedForm(form_of(make_layer(3), unbiased=unbiased, group_size=group_size))
    x = draw(5).astype(np.float32)

    def replica(communicator: Communicator) -> dict[str, npt.NDArray[Any]]:
        dataset = open_dataset(lambda: [{"x": x}], ["x"])
        options = CalibrateOptions(batch_size=2)
        return calibrate_replica(form, communicator, dataset, options).statistics

    units = 16 * float(np.finfo(np.float32).eps)
    for found in on_threads(replicas, replica):
        np.testing.assert_allclose(found["m"], x.mean(axis=0), rtol=units, atol=units)
        exact = x.astype(np.float64).var(axis=0, ddof=unbiased)
        np.testing.assert_allclose(found["v"], exact, rtol=units)
