"""Values of a graph that are known without running it."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import onnx
import onnx_ir as ir

from syncbn_convert.graph import graphs

logger = logging.getLogger(__name__)

_FOLDED_OPERATORS = frozenset(
    [
        "Add",
        "Cast",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Identity",
        "Mul",
        "Neg",
        "Reciprocal",
        "Reshape",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    ]
)
_LARGEST_FOLDED = 1 << 20
"""Elements; a parameter of a normalization has one per channel."""
_MOST_STEPS = 16
"""A normalization in elementwise operators takes half as many; more could cost without end."""

FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS = 4

NAME = "constant"
"""What frontends call an initializer that is no variable of the framework; they number the rest."""
_NAMED = re.compile(rf"{NAME}(_\d+)?")


def is_named_constant(value: ir.Value) -> bool:
    """Whether an initializer has the name that frontends give to what is no variable."""
    return _NAMED.fullmatch(str(value.name)) is not None


def is_overridable(value: ir.Value, ir_version: int | None) -> bool:
    """Whether a caller may feed another value than the initializer.

    Before IR version 4 every initializer had to be listed as an input, so the listing says nothing.
    """
    return (
        value.is_graph_input()
        and value.is_initializer()
        and (ir_version or 0) >= FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
    )


def constant_tensor(
    value: ir.Value, model: ir.Model, steps: int = _MOST_STEPS
) -> ir.TensorProtocol | None:
    """Return the tensor that `value` always holds, or None where it depends on what is fed.

    Initializers are looked up; results on constants of the operators that change shape or type,
    and of those that an exporter writes a normalization's parameters with (Add, Sqrt and the like),
    are computed by ONNX's reference implementation, in the opset that the model imports, if no
    more than `steps` of them follow one another.
    """
    if value.is_initializer():
        return None if is_overridable(value, model.ir_version) else value.const_value
    node = value.producer()
    if node is None or node.domain not in graphs.STANDARD_DOMAINS or not steps:
        return None
    if node.op_type not in _FOLDED_OPERATORS or len(node.outputs) != 1:
        return None
    if node.op_type == "Constant" and "value" in node.attributes:
        attribute = node.attributes["value"]
        return None if attribute.is_ref() else attribute.as_tensor()
    return _evaluate(node, value, model, steps)


def _evaluate(
    node: ir.Node, value: ir.Value, model: ir.Model, steps: int
) -> ir.TensorProtocol | None:
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    feeds: dict[str, ir.TensorProtocol] = {}
    for operand in node.inputs:
        if operand is None or str(operand.name) in feeds:
            continue
        tensor = constant_tensor(operand, model, steps - 1)
        if tensor is None or tensor.size > _LARGEST_FOLDED:
            return None
        feeds[str(operand.name)] = tensor
    if node.op_type == "ConstantOfShape":
        (shape,) = feeds.values()
        if math.prod(shape.numpy().tolist()) > _LARGEST_FOLDED:
            return None
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.to_proto(node)],
            "constant",
            [
                onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())
                for name, tensor in feeds.items()
            ],
            [onnx.ValueInfoProto(name=value.name)],
        ),
        opset_imports=[onnx.helper.make_opsetid("", graphs.opset_version(model))],
    )
    from onnx.reference import ReferenceEvaluator  # most models never need it

    try:
        evaluator = ReferenceEvaluator(proto)
        (result,) = evaluator.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    except Exception:  # whatever the reference implementation raises
        logger.debug("node '%s' cannot be computed", node.name, exc_info=True)
        return None
    return ir.tensor(np.asarray(result), name=value.name)
