"""Pools over windows and over whole images."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.passes.gradients.registry import Gradients, gradient
from syncbn_convert.passes.gradients.tape import GradientTape


@gradient("GlobalAveragePool")
def global_average_pool(tape: GradientTape, node: ir.Node, gradients: Gradients) -> Gradients:
    """Each pixel gets an equal share."""
    (x,) = node.inputs
    assert x is not None
    shape = tape.shape_of(x)
    pixels = tape.op("ReduceProd", tape.op("Slice", shape, tape.ints(2), tape.ints(2**62)))
    share = tape.op("Div", gradients[0], tape.op("Cast", pixels, to=int(tape.dtype(x))))
    return [tape.op("Expand", share, shape)]
