"""`inspect`: what normalization a model holds, and what `convert` would say to it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from syncbn_convert.commands.run import Result
from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import absence, batchnorm, sick_statistics, training_form
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs, module_names, random_nodes
from syncbn_convert.keras import reading
from syncbn_convert.options.rewrites import ConvertOptions
from syncbn_convert.passes import recipes
from syncbn_convert.reports import InspectReport, NodeInfo
from syncbn_convert.rewriting import pipeline

_ALREADY = "is synchronized already"
DECOMPOSED = "decomposed"
"""Stands for the operator where there is none, but what `recognize_batchnorm` takes for it."""


def run(path: Path) -> Result[InspectReport]:
    """List the normalization nodes of a file.

    Raises:
        ModelFileError: as `inspect`.
    """
    return Result(report=inspect(path))


def inspect(model: ModelLike) -> InspectReport:
    """List the normalization nodes of `model`, and why a node cannot be converted.

    Nodes inside model-local functions are listed as `convert` sees them: once for each call.

    Raises:
        ModelFileError: if `model` cannot be read or is malformed.
    """
    return _describe_all(reading.read(model).model)


def _describe_all(model: ir.Model) -> InspectReport:
    """Describe the nodes of a model, which is changed on the way."""
    notes = [
        *model_file.notes_of(model),
        *random_nodes.note(model),
        *batchnorm.notes_on_lost_modes(model),
    ]
    opset, ir_version = graphs.opset_version(model), model.ir_version or 0
    synchronized = [
        _describe(
            node,
            graphs.opset_version(model),
            "",
            training_form.reason_against(model) or _ALREADY,
            sick=_sick(BatchNorm(node, opset), model),
        )
        for node in training_form.nodes(model)
    ]
    original = {graphs.label(norm.node): norm.training_mode for norm, _ in batchnorm.find(model)}
    refusal, decomposed = "", set()
    try:
        done = pipeline.run(model, recipes.recognizing(ConvertOptions()))
        records = done.records["recognize_batchnorm"]
        decomposed = {record.node for record in records if record.action == "recognized"}
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
            sick="" if _stands_for_none(norm, decomposed) else _sick(norm, model),
        )
        for norm, location in batchnorm.find(model)
    ]
    if not synchronized and not nodes:
        notes = [*notes, absence.explain(model)]
    return InspectReport(
        opset=opset, ir_version=ir_version, nodes=[*synchronized, *nodes], notes=notes
    )


def _stands_for_none(norm: BatchNorm, decomposed: set[str]) -> bool:
    """Whether the moving statistics of a node are not the model's, but made when it was found."""
    return norm.training_mode and graphs.label(norm.node) in decomposed


def _sick(norm: BatchNorm, model: ir.Model) -> str:
    return "; ".join(sick_statistics.ailments(norm, model))


def _describe(
    node: ir.Node,
    opset: int,
    location: str,
    reason: str,
    *,
    training_mode: bool | None = None,
    op_type: str = "",
    sick: str = "",
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
        sick=sick,
        module=module_names.module_of(node),
    )
