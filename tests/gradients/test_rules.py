"""Every gradient rule against central differences, torch and itself in float32."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from syncbn_convert.passes.gradients import registered
from syncbn_convert.passes.gradients.nondifferentiable import from_integers, no_gradient
from tests.gradients.cases import CASES, Case
from tests.gradients.judge import Bench, Layout
from tests.gradients.sample import Draw

OPSETS = (18, 21, 24, 26)
FEW = settings(
    max_examples=4,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=60)


def judge(case: Case, data: st.DataObject, *, empty: bool = False) -> None:
    draw = Draw(data, empty)
    layout = Layout(
        opset=draw.one_of(*OPSETS),
        dims=draw.one_of("static", "size", "each"),
        fed=draw.flag(),
    )
    bench = Bench(case.sampler(draw), layout)
    bench.check_autograd()
    bench.check_differences()
    bench.check_float32()


@pytest.mark.parametrize("case", CASES, ids=str)
@FEW
@given(data=st.data())
def test_rule(case: Case, data: st.DataObject) -> None:
    judge(case, data)


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(FEW, max_examples=1)
@given(data=st.data())
def test_rule_on_an_empty_batch(case: Case, data: st.DataObject) -> None:
    judge(case, data, empty=True)


@pytest.mark.parametrize("case", [case for case in CASES if case.op_type != "Celu"], ids=str)
@settings(FEW, max_examples=1)
@given(data=st.data())
def test_rule_in_float16(case: Case, data: st.DataObject) -> None:
    Bench(case.sampler(Draw(data)), Layout(opset=21)).check_float16()


@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
@MANY
@given(data=st.data())
def test_rule_on_many_samples(case: Case, empty: bool, data: st.DataObject) -> None:
    judge(case, data, empty=empty)


def test_every_registered_operator_is_judged() -> None:
    covered = {case.op_type for case in CASES}
    flat = (no_gradient, from_integers)
    rules = [(op_type, rule) for domain, op_type, rule in registered() if not domain]
    assert [op_type for op_type, rule in rules if rule not in flat and op_type not in covered] == []
