"""The way from a value back to the weights that made its channels."""

from __future__ import annotations

import enum

import onnx_ir as ir

from syncbn_convert.graph import graphs, weighted
from syncbn_convert.passes.recognition.layouts import Layouts

_SAME_AXES = frozenset(
    [
        *("Add", "AveragePool", "Celu", "Clip", "Concat", "Dropout", "Elu", "GlobalAveragePool"),
        *("GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mish", "PRelu"),
        *("Pad", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Tanh"),
    ]
)
_MOST_STEPS = 1000


class Reached(enum.Enum):
    """What is found at the end of the way."""

    CHANNELS = "the axis is that of the channels that weights make"
    OTHER = "it is another one"
    NOTHING = "there are no weights"


def channels_of_weights(value: ir.Value, axis: int, rank: int, layouts: Layouts) -> Reached:
    """Follow `axis` of a value back through activations, pools, sums and Transposes."""
    current: ir.Value | None = value
    for _ in range(_MOST_STEPS):
        node = current.producer() if current is not None else None
        if node is None or node.domain not in graphs.STANDARD_DOMAINS:
            return Reached.NOTHING
        operator = weighted.OPERATORS.get(node.op_type)
        if operator is not None:
            return Reached.CHANNELS if axis == operator.channels_at(rank) else Reached.OTHER
        order = layouts.order(node, rank)
        if order is not None:
            axis = order[axis]
        elif node.op_type not in _SAME_AXES:
            return Reached.NOTHING
        made_by_nodes = [v for v in node.inputs if v is not None and v.producer() is not None]
        current = made_by_nodes[0] if made_by_nodes else None
    return Reached.NOTHING
