"""Training form, or training mode, to inference-mode BatchNormalization."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import (
    batchnorm,
    provenance,
    training_form,
    training_info,
    weight_facts,
)
from syncbn_convert.form.batchnorm import MOVING_ROLES, BatchNorm
from syncbn_convert.graph import channel_axis, graphs, inlining, module_names
from syncbn_convert.graph.value_types import infer_shapes_of
from syncbn_convert.passes import constrain_parameters, regularize_parameters
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

_INPUT_OF = {"input_mean": 3, "input_var": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldMovingStatistics(RewritePass):
    """Make every node normalize by its moving statistics, as constants.

    1. `SyncBatchNormalization` becomes the BatchNormalization it was, by its provenance: name,
       attributes, parameters. Moving statistics leave the graph inputs, `.next` outputs and their
       bindings go; a statistic that was split off and is still equal to its origin joins it again.
       A layer that was not synchronized, but given the same state, is folded alike.
    2. A channel axis other than 1, which BatchNormalization does not have, becomes Mul and Add; or,
       with `keep_batchnorm`, a BatchNormalization between two Transposes.
    3. The regularization loss and the projections of constraints go, as nothing is trained.
    4. A BatchNormalization in training mode, of any opset and in any body, loses its training mode
       and its outputs but the first; model-local functions that hold one, or call one that does,
       are inlined. Running or saved statistics that the graph returned are returned no more, and a
       note says so. A node whose mode another tool has dropped, and not its outputs, is taken for
       such.
    5. A node whose saved batch statistics another node reads is left alone: in inference mode there
       are none.
    6. A training form whose functions another tool has inlined is refused, and what is only called
       like one.

    ```
    before   y, m.next, v.next = syncbn.SyncBatchNormalization(x, s, b, m, v)
    after    y = BatchNormalization(x, s, b, m, v)
    ```

    Attributes:
        keep_batchnorm: Whether a node of another channel axis stays a BatchNormalization.
    """

    keep_batchnorm: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that was in training mode gets a record."""
        journal = Journal(logger)
        training_form.check_domain(model)
        _refuse_inlined(model)
        outputs = {output.name for output in model.graph.outputs}
        modified = _inline_training_functions(model, journal)
        formed = [*training_form.nodes(model), *provenance.unsynchronized(model)]
        for node in formed:
            node.resize_outputs(len(training_form.OUTPUTS))
        returned = _withdraw_statistics(formed, model.graph)
        infer_shapes_of(model, (node.inputs[0] for node in formed if _axis(node) != 1))
        names = graphs.Names(model)
        for node in formed:
            self._fold(node, model, names, returned, journal)
        if formed:
            training_form.remove_from(model)
            _thaw(model)
        modified |= bool(formed)
        modified |= _remove_training_parts(model, journal)
        for norm, location in list(batchnorm.find(model)):
            if _has_training_outputs(norm):
                modified |= _fold_training_mode(norm, location, journal)
        _forget_bindings(model, outputs)
        return journal.result(model, modified=modified)

    def _fold(
        self,
        node: ir.Node,
        model: ir.Model,
        names: graphs.Names,
        returned: set[ir.Value],
        journal: Journal,
    ) -> None:
        norm, axis = BatchNorm(node, training_form.MIN_OPSET), _axis(node)
        label, detail, reason = graphs.label(node), norm.detail(), ""
        module = module_names.module_of(node)
        other_axis = not channel_axis.is_first(axis, norm.rank)
        _unsynchronize(node, model.graph, returned, journal)
        if other_axis and self.keep_batchnorm and norm.rank is not None:
            channel_axis.wrap_in_transposes(node, names, axis=axis, rank=norm.rank)
            reason = f"axis {axis}: between Transposes"
        elif other_axis:
            spelling = channel_axis.replace_by_affine(
                node, model, names, axis=axis, epsilon=norm.epsilon
            )
            reason = f"axis {axis}: spelled as {spelling}"
        journal.add(label, "folded", reason, module=module, **detail)


def _refuse_inlined(model: ir.Model) -> None:
    for norm, _ in batchnorm.find(model):
        if batchnorm.only_measures(norm):
            raise ConversionError(f"node '{graphs.label(norm.node)}': {batchnorm.INLINED}")


def _thaw(model: ir.Model) -> None:
    """Forget what `convert` froze beside what it converted."""
    weight_facts.thaw(model)
    for norm, _ in batchnorm.find(model):
        provenance.forget_frozen(norm.node)


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 1)


def _remove_training_parts(model: ir.Model, journal: Journal) -> bool:
    loss = regularize_parameters.remove_from(model)
    if loss is not None:
        journal.note(f"graph output '{loss}' was removed")
    projected = constrain_parameters.remove_from(model)
    if projected:
        journal.note(f"the projections of {len(projected)} constrained parameters were removed")
    return loss is not None or bool(projected)


def _inline_training_functions(model: ir.Model, journal: Journal) -> bool:
    holders = graphs.functions_with(model, _trains)
    if not holders:
        return False
    names = ", ".join(sorted(f"{domain}::{name}" for domain, name, _ in holders))
    journal.note(f"model-local functions with training-mode nodes were inlined: {names}")
    inlining.inline(model, holders)
    return True


def _trains(node: ir.Node, function: ir.Function) -> bool:
    if not batchnorm.is_batchnorm(node) or function.domain == training_form.DOMAIN:
        return False
    return _has_training_outputs(BatchNorm(node, function.opset_imports.get("", 0)))


def _has_training_outputs(norm: BatchNorm) -> bool:
    return norm.training_mode or norm.mode_lost


def _withdraw_statistics(nodes: list[ir.Node], graph: ir.Graph) -> set[ir.Value]:
    """Take moving statistics out of the graph's inputs and outputs; return the outputs removed."""
    moving = [node.inputs[index] for node in nodes for index in _INPUT_OF.values()]
    following = [node.outputs[index - 2] for node in nodes for index in _INPUT_OF.values()]
    returned = set(following).intersection(graph.outputs)
    graphs.remove_from(graph.outputs, following)
    graphs.remove_from(
        graph.inputs, (value for value in moving if value is not None and value.is_initializer())
    )
    return returned


def _unsynchronize(
    node: ir.Node, graph: ir.Graph, returned: set[ir.Value], journal: Journal
) -> None:
    original = provenance.read(node) or provenance.Provenance({}, {})
    for index in _INPUT_OF.values():
        moving, following = node.inputs[index], node.outputs[index - 2]
        assert moving is not None
        if following in returned and following.name != f"{moving.name}.next":
            journal.note(f"graph output '{following.name}' (running statistic) was removed")
        following.replace_all_uses_with(moving)
    node.resize_outputs(1)
    current = {
        name: node.attributes.get_float(name, default)
        for name, default in batchnorm.DEFAULTS.items()
    }
    node.op_type, node.domain = batchnorm.OP_TYPE, ""
    node.attributes.clear()
    for attribute in _restored_attributes(original, current):
        node.attributes.add(attribute)
    for role in MOVING_ROLES:
        _join(node, role, original.split_from.get(role), graph)
    provenance.erase(node)


def _restored_attributes(
    original: provenance.Provenance, current: dict[str, float]
) -> list[ir.Attr]:
    """Return the attributes as they were written, with today's epsilon and momentum."""
    restored = [
        ir.AttrFloat32(name, current[name]) if name in current else ir.AttrInt64(name, 0)
        for name, value in original.attributes.items()
        if name != "training_mode" or not value
    ]
    restored += [
        ir.AttrFloat32(name, value)
        for name, value in current.items()
        if name not in original.attributes and value != batchnorm.DEFAULTS[name]
    ]
    return restored


def _join(node: ir.Node, role: str, origin_name: str | None, graph: ir.Graph) -> None:
    """Read the statistic that was split off from its origin again, if nothing changed it."""
    own = node.inputs[_INPUT_OF[role]]
    origin = graph.initializers.get(origin_name) if origin_name else None
    if own is origin:
        return
    if own is None or origin is None or own.const_value is None or origin.const_value is None:
        return
    if own.const_value.tobytes() == origin.const_value.tobytes():
        own.replace_all_uses_with(origin)
        del graph.initializers[str(own.name)]


def _fold_training_mode(norm: BatchNorm, location: str, journal: Journal) -> bool:
    against = batchnorm.reason_against_folding(norm, location)
    if against:
        journal.add(norm.node, "skipped", against, location=location)
        return False
    read = any(value is not None and value.uses() for value in norm.running_outputs)
    detail, lost = norm.detail(), norm.mode_lost
    removed = batchnorm.put_in_inference_mode(norm)
    for name in removed:
        journal.note(f"graph output '{name}' (statistic of the training mode) was removed")
    reason = "had the outputs of training mode without the mode" if lost else "was in training mode"
    if read:
        reason += "; readers of its running statistics now read the moving statistics"
    journal.add(norm.node, "folded", reason, location=location, **detail)
    return True


def _forget_bindings(model: ir.Model, returned: set[str | None]) -> None:
    """Drop the bindings to graph outputs that are returned no more."""
    gone = returned - {output.name for output in model.graph.outputs}
    bindings = training_info.update_bindings(model)
    kept = {key: value for key, value in bindings.items() if value not in gone}
    if kept != bindings:
        training_info.set_update_bindings(model, kept)
