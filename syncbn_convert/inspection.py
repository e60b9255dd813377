"""What normalization a model holds, and what `convert` would say to it."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert import batchnorm, graphs, training_form
from syncbn_convert.batchnorm import BatchNorm
from syncbn_convert.errors import ConversionError
from syncbn_convert.passes.canonicalize_batchnorm import CanonicalizeBatchNorm
from syncbn_convert.reports import InspectReport, NodeInfo

_ALREADY = "is synchronized already"


def inspect(model: ir.Model) -> InspectReport:
    """List the normalization nodes of `model`, which is changed on the way.

    Nodes inside model-local functions are listed as `convert` sees them: once for each call.
    """
    opset, ir_version = graphs.opset_version(model), model.ir_version or 0
    synchronized = [
        _describe(node, graphs.opset_version(model), "", _ALREADY)
        for node in training_form.nodes(model)
    ]
    original = {graphs.label(norm.node): norm.training_mode for norm, _ in batchnorm.find(model)}
    refusal = ""
    try:
        CanonicalizeBatchNorm()(model)
    except ConversionError as error:
        refusal = str(error)
    nodes = [
        _describe(
            norm.node,
            norm.opset,
            location,
            refusal or batchnorm.reason_against(norm, model, location),
            training_mode=original.get(graphs.label(norm.node)),
        )
        for norm, location in batchnorm.find(model)
    ]
    return InspectReport(opset=opset, ir_version=ir_version, nodes=[*synchronized, *nodes])


def _describe(
    node: ir.Node,
    opset: int,
    location: str,
    reason: str,
    *,
    training_mode: bool | None = None,
) -> NodeInfo:
    norm = BatchNorm(node, opset)
    if training_mode is None:
        training_mode = norm.training_mode
    synchronized = training_form.is_sync_batchnorm(node)
    return NodeInfo(
        name=graphs.label(node),
        op_type=node.op_type,
        domain=node.domain,
        axis=node.attributes.get_int("axis", 1),
        channels=norm.channels,
        epsilon=norm.epsilon,
        momentum=norm.momentum,
        training_mode=synchronized
        or (norm.training_mode if training_mode is None else training_mode),
        dtype=norm.dtype_name,
        parameters=[str(value.name) for value in norm.parameters.values()],
        location=location,
        convertible=not reason,
        reason=reason,
    )
