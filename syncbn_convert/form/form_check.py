"""A training form as it is read: its nodes have the attributes of the form, of their types.

What its functions compute is `training_form.reason_against`'s.
"""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm, provenance, training_form
from syncbn_convert.graph import graphs

_TYPES = {
    "epsilon": ir.AttributeType.FLOAT,
    "momentum": ir.AttributeType.FLOAT,
    "axis": ir.AttributeType.INT,
    "group_size": ir.AttributeType.INT,
    "unbiased": ir.AttributeType.INT,
    "stash_type": ir.AttributeType.INT,
}
_STASHES = (int(ir.DataType.FLOAT), int(ir.DataType.DOUBLE))
_LARGEST = 2**31
_CURE = "take the file that 'syncbn-convert' wrote, before other tools changed it"


def check(model: ir.Model) -> None:
    """Refuse a training form one of whose nodes this package cannot have written.

    Raises:
        ConversionError: naming the node.
    """
    for node, location, function in graphs.walk(model):
        if node.domain == training_form.DOMAIN and function is None:
            fault = _node_fault(node, location)
        elif batchnorm.is_batchnorm(node) and not location and provenance.read(node) is not None:
            fault = _layer_fault(node)
        else:
            continue
        if fault:
            raise ConversionError(f"node '{graphs.label(node)}': {fault}; {_CURE}")


def _node_fault(node: ir.Node, location: str) -> str:
    for name, attribute in node.attributes.items():
        wanted = _TYPES.get(name)
        if wanted is None or attribute.is_ref() or attribute.type != wanted:
            return f"attribute '{name}' is not one of a {node.op_type}, or not of its type"
        if wanted == ir.AttributeType.INT and abs(attribute.as_int()) > _LARGEST:
            return f"attribute '{name}' is far out of range"
    if node.attributes.get_int("stash_type", _STASHES[0]) not in _STASHES:
        return "its stash_type is neither float nor double"
    if node.attributes.get_int("group_size", 0) < 0:
        return "its group_size is below 0"
    if node.op_type != training_form.OP_TYPE:
        return ""
    return f"a training form has no node in {location}" if location else _state_fault(node)


def _layer_fault(node: ir.Node) -> str:
    """Return what is wrong with a layer that is in training mode and not synchronized."""
    if len(node.inputs) != len(training_form.INPUTS) or None in node.inputs:
        return "it holds a note of a training form, and is no layer of one"
    if len(node.outputs) < len(training_form.OUTPUTS):
        return "it holds a note of a training form, and does not return its running statistics"
    return _state_fault(node)


def _state_fault(node: ir.Node) -> str:
    """Return what is wrong with the moving statistics of a node, where it has them."""
    for role, value in zip(batchnorm.MOVING_ROLES, node.inputs[3:5], strict=False):
        tensor = value.const_value if value is not None and value.is_initializer() else None
        if tensor is not None and len(tensor.shape) != 1:
            return f"its {role} has rank {len(tensor.shape)} instead of 1"
        if tensor is not None and not tensor.dtype.is_floating_point():
            return f"its {role} holds no floating-point numbers"
        if tensor is None and (value is None or value.producer() is None):
            return f"its {role} is no initializer"
    return ""
