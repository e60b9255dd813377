"""What normalization a model holds, and what `convert` would say to it."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert import passes
from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm, training_form
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs
from syncbn_convert.reports import InspectReport, NodeInfo
from syncbn_convert.rewriting import RewriteResult

_ALREADY = "is synchronized already"
DECOMPOSED = "decomposed"
"""Stands for the operator where there is none, but what `recognize_batchnorm` takes for it."""


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
    refusal, decomposed = "", set()
    try:
        passes.CanonicalizeBatchNorm()(model)
        decomposed = _recognize(model)
    except ConversionError as error:
        refusal = str(error)
    nodes = [
        _describe(
            norm.node,
            norm.opset,
            location,
            refusal or batchnorm.reason_against(norm, model, location),
            training_mode=original.get(graphs.label(norm.node)),
            op_type=DECOMPOSED if graphs.label(norm.node) in decomposed else "",
        )
        for norm, location in batchnorm.find(model)
    ]
    return InspectReport(opset=opset, ir_version=ir_version, nodes=[*synchronized, *nodes])


def _recognize(model: ir.Model) -> set[str]:
    """Recognize normalization in elementwise operators; return the names of the nodes."""
    result = passes.RecognizeBatchNorm()(model)
    assert isinstance(result, RewriteResult)
    return {record.node for record in result.records if record.action == "recognized"}


def _describe(
    node: ir.Node,
    opset: int,
    location: str,
    reason: str,
    *,
    training_mode: bool | None = None,
    op_type: str = "",
) -> NodeInfo:
    norm = BatchNorm(node, opset)
    if training_mode is None:
        training_mode = norm.training_mode
    synchronized = training_form.is_sync_batchnorm(node)
    return NodeInfo(
        name=graphs.label(node),
        op_type=op_type or node.op_type,
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
