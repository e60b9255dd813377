"""Which sampler draws samples of which operator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tests.gradients.sample import Draw, Sample


@dataclasses.dataclass(frozen=True)
class Case:
    """Draws samples of one operator.

    Attributes:
        op_type: The operator.
        sampler: Draws one sample of it.
    """

    op_type: str
    sampler: Callable[[Draw], Sample]

    def __str__(self) -> str:
        return f"{self.op_type}-{self.sampler.__name__}"


CASES: list[Case] = []
Sampler = Callable[[str, Draw], Sample]


def case(*op_types: str) -> Callable[[Sampler], Sampler]:
    """Register the decorated function, which is given the operator, as sampler of operators."""

    def register(sampler: Sampler) -> Sampler:
        for op_type in op_types:
            bound = functools.partial(sampler, op_type)
            functools.update_wrapper(bound, sampler)
            CASES.append(Case(op_type, bound))
        return sampler

    return register
