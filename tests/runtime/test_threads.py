"""Replicas in threads: what fails on one of them ends all, with its message and in time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from syncbn_convert import ReplicaError, ReplicaSession
from syncbn_convert.runtime import Communicator
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import LoadedForm
from tests.models import make_layer
from tests.runtime.test_session import draw, form_of

Array = npt.NDArray[Any]

X = draw((6,), (3, 4))[0]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.fixture(scope="module")
def form() -> LoadedForm:
    return LoadedForm(form_of(make_layer(3), [4]))


@pytest.fixture(scope="module")
def grouped_form() -> LoadedForm:
    return LoadedForm(form_of(make_layer(3), [4], group_size=2))


def fails(size: int, replica: Callable[[Communicator], Any], *, timeout: float = 60) -> str:
    """Return the message of the error that the replicas end with."""
    with pytest.raises(ReplicaError) as caught:
        on_threads(size, replica, timeout=timeout)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_collectives_combine_the_values_of_all_ranks() -> None:
    def replica(communicator: Communicator) -> tuple[list[int], str, list[float], int]:
        rank = communicator.rank
        mine = np.array([1.0, 10.0]) * (rank + 1)
        total = communicator.all_reduce_sum(mine)
        communicator.barrier()
        assert np.array_equal(mine, np.array([1.0, 10.0]) * (rank + 1))
        gathered = communicator.all_gather(rank * rank)
        return gathered, communicator.broadcast(f"from {rank}"), total.tolist(), communicator.size

    assert on_threads(3, replica) == [([0, 1, 4], "from 0", [6.0, 60.0], 3)] * 3


def test_each_replica_owns_its_sum() -> None:
    def replica(communicator: Communicator) -> float:
        total = communicator.all_reduce_sum(np.ones(1))
        communicator.barrier()
        total += communicator.rank
        communicator.barrier()
        return float(total[0])

    assert on_threads(3, replica) == [3.0, 4.0, 5.0]


def test_sums_are_taken_in_the_order_of_ranks() -> None:
    values = [1e16, 1.0, -1e16, 1.0]

    def replica(communicator: Communicator) -> float:
        time.sleep(0.01 * (communicator.size - communicator.rank))
        return float(communicator.all_reduce_sum(np.array([values[communicator.rank]]))[0])

    assert on_threads(4, replica) == [((1e16 + 1.0) - 1e16) + 1.0] * 4


def test_split_makes_groups_of_consecutive_ranks() -> None:
    def replica(communicator: Communicator) -> float:
        group = communicator.split(2)
        return float(group.all_reduce_sum(np.array([10.0**communicator.rank]))[0])

    assert on_threads(4, replica) == [11.0, 11.0, 1100.0, 1100.0]


def test_a_failure_reaches_a_group_that_is_made_after_it() -> None:
    failed = threading.Event()

    def replica(communicator: Communicator) -> None:
        if communicator.rank == 0:
            communicator.abort("replica 0: lost")
            failed.set()
        failed.wait(20)
        communicator.split(2).all_reduce_sum(np.ones(1))

    with within(1):
        assert fails(4, replica, timeout=20) == "replica 0: lost"


def test_many_collectives_in_a_row_never_mix() -> None:
    def replica(communicator: Communicator) -> list[float]:
        return [
            float(communicator.all_reduce_sum(np.array([step * (communicator.rank + 1.0)]))[0])
            for step in range(300)
        ]

    assert on_threads(4, replica) == [[step * 10.0 for step in range(300)]] * 4


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_wrong_input_on_one_replica_ends_all(culprit: int, form: LoadedForm) -> None:
    ended: list[str] = []

    def replica(communicator: Communicator) -> None:
        try:
            session = ReplicaSession(form, communicator)
            session.step({"x": X})
            session.step({"x": X[:, :2] if communicator.rank == culprit else X})
        except ReplicaError as error:
            ended.append(str(error))
            raise

    with within(1):
        message = fails(3, replica)
    assert message.startswith(f"replica {culprit}, step 2: ")
    assert "dimensions" in message
    assert ended == [message] * 3


def test_a_missing_input_is_named(form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        ReplicaSession(form, communicator).step({"x": X} if communicator.rank == 0 else {})

    with within(1):
        message = fails(2, replica)
    assert message.startswith("replica 1, step 1: ")
    assert "['x']" in message


def test_an_exception_of_the_callers_own_is_propagated_as_it_is(form: LoadedForm) -> None:
    mine = ZeroDivisionError("no data")
    others: list[str] = []

    def replica(communicator: Communicator) -> None:
        try:
            session = ReplicaSession(form, communicator)
            if communicator.rank == 1:
                raise mine
            session.step({"x": X})
        except ReplicaError as error:
            others.append(str(error))
            raise

    with within(1), pytest.raises(ZeroDivisionError) as caught:
        on_threads(3, replica)
    assert caught.value is mine
    assert others == ["replica 1: ZeroDivisionError: no data"] * 2


def test_an_exit_on_one_replica_ends_all(form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        session = ReplicaSession(form, communicator)
        if communicator.rank == 0:
            sys.exit("enough")
        session.step({"x": X})

    with within(1), pytest.raises(SystemExit, match="enough"):
        on_threads(2, replica, timeout=20)


@pytest.mark.parametrize("short", [0, 1])
def test_a_replica_with_fewer_steps_is_reported(short: int, form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        session = ReplicaSession(form, communicator)
        for _ in range(2 if communicator.rank == short else 3):
            session.step({"x": X})

    with within(1):
        message = fails(2, replica)
    assert message == (
        f"replica {short} ended after 3 collectives, but replica {1 - short} is in collective 4; "
        "give all replicas the same number of steps"
    )


def test_a_replica_with_fewer_steps_is_reported_in_its_group(grouped_form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        session = ReplicaSession(grouped_form, communicator)
        for _ in range(1 if communicator.rank == 2 else 2):
            session.step({"x": X})

    with within(1):
        message = fails(4, replica, timeout=20)
    assert message.startswith("replica 2 ended after 1 collectives, but replica 3 is in")


def test_a_slow_replica_runs_into_the_time_limit(form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        session = ReplicaSession(form, communicator)
        if communicator.rank == 1:
            time.sleep(1)
        session.step({"x": X})

    message = fails(3, replica, timeout=0.5)
    assert message.startswith(("replica 0 waited 0.5 s in", "replica 2 waited 0.5 s in"))
    assert message.endswith(
        "collective 2 for replica 1; raise --collective-timeout if it is only slow"
    )


def test_the_time_limit_names_a_slow_replica_of_a_later_group(grouped_form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        session = ReplicaSession(grouped_form, communicator)
        if communicator.rank == 3:
            time.sleep(1)
        session.step({"x": X})

    message = fails(4, replica, timeout=0.5)
    assert message.startswith("replica 2 waited 0.5 s in collective 1 for replica 3;")


def test_a_replica_that_never_comes_back_holds_up_nobody(form: LoadedForm) -> None:
    released = threading.Event()

    def replica(communicator: Communicator) -> None:
        session = ReplicaSession(form, communicator)
        if communicator.rank == 1:
            released.wait(20)
        session.step({"x": X})

    try:
        with within(5):
            message = fails(2, replica, timeout=0.5)
    finally:
        released.set()
    assert "for replica 1;" in message


def test_a_different_model_is_named() -> None:
    forms = [LoadedForm(form_of(make_layer(3, epsilon=eps), [4])) for eps in (1e-3, 1e-5)]
    message = fails(2, lambda end: ReplicaSession(forms[end.rank], end))
    assert message.startswith("replica 1 differs from replica 0 in model: ")
    assert message.endswith("; start all replicas alike")


def test_what_else_has_to_agree_is_named(form: LoadedForm) -> None:
    def replica(communicator: Communicator) -> None:
        ReplicaSession(form, communicator, agreement={"seed": 5 + (communicator.rank == 2)})

    assert fails(3, replica) == (
        "replica 2 differs from replica 0 in seed: 6 against 5; start all replicas alike"
    )
