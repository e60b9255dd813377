"""Random small graphs: what `fuse`, `fold` and `convert` make of them is right in float64."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.random_graphs.generator import sample
from tests.random_graphs.judge import Judge

FEW = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
COMMANDS = ("fuse", "fold", "fold and fuse", "convert")
MANY = settings(FEW, max_examples=2500)


def judge(command: str, data: st.DataObject, *, verify: bool = False) -> None:
    found = Judge(sample(data), verify=verify)
    if command == "convert":
        found.convert()
    elif command == "fuse":
        found.fuse()
    else:
        found.fold(fuse=command != "fold")
    for outcome in found.outcomes:
        event(outcome)


@FEW
@given(data=st.data())
def test_fuse(data: st.DataObject) -> None:
    judge("fuse", data)


@settings(FEW, max_examples=80)
@given(data=st.data())
def test_fold(data: st.DataObject) -> None:
    judge(data.draw(st.sampled_from(("fold", "fold and fuse"))), data)


@settings(FEW, max_examples=50)
@given(data=st.data())
def test_convert(data: st.DataObject) -> None:
    judge("convert", data)


@pytest.mark.sweep
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", COMMANDS)
@MANY
@given(data=st.data())
def test_many(command: str, data: st.DataObject) -> None:
    judge(command, data)


@pytest.mark.sweep
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", COMMANDS)
@settings(FEW, max_examples=50)
@given(data=st.data())
def test_verified(command: str, data: st.DataObject) -> None:
    judge(command, data, verify=True)
