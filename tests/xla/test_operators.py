"""Every operator that has a gradient sampler, forward and gradient, beside torch in float64."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbn_convert.passes.gradients import registered as differentiated
from tests.gradients.cases import CASES
from tests.gradients.sample import Draw
from tests.gradients.test_rules import FEW
from tests.xla.conftest import InChild

_NAMES = [str(case) for case in CASES]


def judge_samples(name: str, count: int, empty: bool) -> None:
    """Runs in the child: draws samples of a case and judges them."""
    from tests.xla.bench import judge

    case = CASES[_NAMES.index(name)]

    @settings(FEW, max_examples=count)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        judge(case.sampler(Draw(data, empty)))

    run()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.sweep] if index % 2 else [])
        for index, name in enumerate(_NAMES)
    ],
)
def test_operator(name: str, in_child: InChild) -> None:
    in_child(judge_samples, name, 1, False)


@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", _NAMES)
def test_operator_on_many_samples(name: str, empty: bool, in_child: InChild) -> None:
    in_child(judge_samples, name, 3 if empty else 20, empty)


def translated() -> set[str]:
    """Runs in the child: the operators that have a translation."""
    from syncbn_convert.xla.operators import registered

    return set(registered())


def test_what_has_a_gradient_has_a_translation(in_child: InChild) -> None:
    rules = {op_type for domain, op_type, _ in differentiated() if not domain}
    assert rules - in_child(translated) == {"NonMaxSuppression"}
