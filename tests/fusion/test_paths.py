from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from syncbn_convert.passes import FuseBatchNorm
from syncbn_convert.passes.fusion.paths import Walker

LENGTH = 200
STEPS_PER_NODE = 10
"""At most three channel axes, two kinds of ends, and room."""


def _run_that_ends_nowhere(length: int) -> ir.Model:
    """Return scales and shifts per channel of the model's input, one behind the other."""
    x = y = ir.val("x", ir.DataType.FLOAT, ["n", 3, 4, 4])
    nodes, constants = [], []
    for index in range(length):
        array = np.full((3, 1, 1), 1.5, np.float32)
        constants.append(ir.val(f"c{index}", const_value=ir.tensor(array, name=f"c{index}")))
        nodes.append(ir.node("Mul" if index % 2 else "Add", [y, constants[-1]], name=f"n{index}"))
        y = nodes[-1].outputs[0]
        y.name, y.type, y.shape = f"y{index}", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=nodes, initializers=constants, opset_imports={"": 18})
    return ir.Model(graph, ir_version=10)


def test_work_grows_with_the_nodes_and_not_with_their_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 0
    step = Walker._step

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(*arguments)

    monkeypatch.setattr(Walker, "_step", counted)
    result = FuseBatchNorm()(_run_that_ends_nowhere(LENGTH))
    assert not result.modified
    assert LENGTH < steps < STEPS_PER_NODE * LENGTH
