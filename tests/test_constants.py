from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from syncbn_convert.graph.constants import constant_tensor


def _model(steps: int, operands: Callable[[list[ir.Value]], list[ir.Value]]) -> ir.Model:
    """Return a model that adds constants `steps` times, each time of what was made before."""
    first = ir.val("c", const_value=ir.tensor(np.ones(3, np.float32), name="c"))
    values, nodes = [first], []
    for index in range(steps):
        nodes.append(ir.node("Add", operands(values), name=f"n{index}"))
        nodes[-1].outputs[0].name = f"v{index}"
        values.append(nodes[-1].outputs[0])
    graph = ir.Graph(
        [], values[-1:], nodes=nodes, initializers=[first], opset_imports={"": 17}, name="g"
    )
    return ir.Model(graph, ir_version=8)


def _last_two(values: list[ir.Value]) -> list[ir.Value]:
    return [values[-1], values[max(0, len(values) - 2)]]


@pytest.mark.parametrize("steps", [1, 8, 16])
def test_parameters_that_are_calculated(steps: int) -> None:
    model = _model(steps, lambda values: [values[-1], values[0]])
    tensor = constant_tensor(model.graph.outputs[0], model)
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.full(3, steps + 1, np.float32))


@pytest.mark.parametrize("operands", [_last_two, lambda values: [values[-1]] * 2])
def test_long_calculations_are_left_to_the_runtime(
    operands: Callable[[list[ir.Value]], list[ir.Value]],
) -> None:
    model = _model(10_000, operands)
    assert constant_tensor(model.graph.outputs[0], model) is None
