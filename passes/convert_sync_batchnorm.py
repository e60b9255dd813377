"""BatchNormalization to `syncbn::SyncBatchNormalization`, the synchronized training form."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.form import (
    batchnorm,
    provenance,
    training_form,
    training_info,
    weight_facts,
)
from syncbn_convert.form.batchnorm import MOVING_ROLES, BatchNorm
from syncbn_convert.form.weight_facts import FROZEN_WEIGHT, WeightFacts
from syncbn_convert.graph import graphs, module_names
from syncbn_convert.graph.value_types import inferred_types
from syncbn_convert.options.layers import SyncBatchNormalizationOptions
from syncbn_convert.rewriting import Journal, RewriteResult
from syncbn_convert.rewriting.selection import Calls, Choice, SelectingPass, layers_with_options

logger = logging.getLogger(__name__)

_INPUT_OF = {"input_mean": 3, "input_var": 4}
_OUTPUT_OF = {"input_mean": 1, "input_var": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSyncBatchNorm(SelectingPass):
    """Turn canonical BatchNormalization nodes into their synchronized training form.

    1. Nodes that share all four parameters are one layer called several times: each call reads the
       moving statistics that the call before it wrote. If one call cannot be converted, none is.
    2. A moving statistic that anything else uses is split off first, under a name of its own.
    3. Each moving statistic becomes a graph input beside its initializer, and its next value the
       graph output `<name>.next`, bound in `training_info`. A running output that the model has
       already keeps its name.
    4. Frozen nodes are put in inference mode, where `train` then leaves them, and their gamma and
       beta with them; what cannot be converted is left alone.
    5. Of the options, axis, variance and group size become attributes; a layer that is not to be
       synchronized becomes ONNX's own training mode instead, with the same state.

    ```
    before   y = BatchNormalization(x, s, b, m, v)
    after    y, m.next, v.next = syncbn.SyncBatchNormalization(x, s, b, m, v)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every BatchNormalization gets a record."""
        choices = self.choose(model)
        chosen = [choice for choice in choices if not choice.reason]
        frozen = [
            choice.norm
            for choice in choices
            if choice.frozen and (choice.norm.training_mode or choice.norm.mode_lost)
        ]
        details = {id(choice.norm.node): choice.norm.detail() for choice in choices}
        names = {
            id(choice.norm.node): module_names.names_of(choice.norm.node) for choice in choices
        }
        journal = Journal(logger)
        for norm in frozen:
            for name in batchnorm.put_in_inference_mode(norm):
                journal.note(f"graph output '{name}' (statistic of a frozen node) was removed")
        for choice in chosen:
            for remark in provenance.remarks(choice.norm.node):
                journal.note(remark)
        marked = sum(_mark_frozen(choice, model) for choice in choices if choice.frozen)
        if chosen:
            _convert(model, chosen)
        for choice in choices:
            key = id(choice.norm.node)
            name, *modules = names[key]
            journal.add(
                name,
                _action(choice),
                choice.reason,
                location=choice.location,
                module="".join(modules),
                **details[key],
            )
        return journal.result(model, modified=bool(chosen or frozen or marked))


def _mark_frozen(choice: Choice, model: ir.Model) -> bool:
    """Keep in the model what is frozen, for whoever trains it; return whether that is new."""
    modified = provenance.mark_frozen(choice.norm.node, _FROZEN)
    if choice.options.training is False and choice.options.trainable is not False:
        return modified
    known = weight_facts.get(model)
    for role in ("scale", "B"):
        value = choice.norm.parameters.get(role)
        if value is None or not value.is_initializer() or known.get(str(value.name)):
            continue
        facts = WeightFacts(untrained=FROZEN_WEIGHT)
        weight_facts.add(model, str(value.name), facts)
        modified = True
    return modified


_FROZEN = "frozen when the model was converted: stays in inference mode"


def _action(choice: Choice) -> str:
    if choice.frozen:
        return "frozen"
    return "skipped" if choice.reason else "converted"


def _convert(model: ir.Model, chosen: list[Choice]) -> None:
    types = inferred_types(model, [choice.norm.x for choice in chosen])
    taken = graphs.used_names(model)
    bindings = training_info.update_bindings(model)
    if any(choice.options.synchronized is not False for choice in chosen):
        training_form.add_to(model, graphs.opset_version(model))
    states: list[tuple[ir.Value, ir.Value]] = []
    order = {id(node): index for index, node in enumerate(model.graph)}
    for calls, options in layers_with_options(chosen):
        splits = {role: _split_if_shared(calls, role, model, taken) for role in MOVING_ROLES}
        for norm in calls:
            split_from = {role: name for role, name in splits.items() if name}
            _convert_node(norm, options, split_from, types)
        states.extend(_chain(calls, taken))
    states.sort(key=lambda state: order[id(state[1].producer())])
    for moving, following in states:
        _bind(model, moving, following, taken, bindings)
    training_info.set_update_bindings(model, bindings)


def _split_if_shared(
    layer: Calls,
    role: str,
    model: ir.Model,
    taken: set[str],
) -> str | None:
    """Give the layer a moving statistic of its own; return the old name where that took a copy."""
    value = layer[0].parameters[role]
    own = {(id(norm.node), _INPUT_OF[role]) for norm in layer}
    uses = {(id(usage.node), usage.idx) for usage in value.uses()}
    if uses <= own and not value.is_graph_output():
        return None
    tensor = value.const_value
    assert tensor is not None
    name = graphs.unique_name(f"{value.name}/{graphs.label(layer[0].node)}", taken)
    copy = ir.Value(
        name=name,
        type=value.type,
        shape=value.shape,
        const_value=ir.tensor(tensor.numpy(), name=name, dtype=tensor.dtype),
    )
    model.graph.register_initializer(copy)
    for norm in layer:
        norm.node.replace_input_with(_INPUT_OF[role], copy)
    return str(value.name)


def _convert_node(
    norm: BatchNorm,
    options: SyncBatchNormalizationOptions,
    split_from: dict[str, str],
    types: dict[ir.Value, ir.DataType],
) -> None:
    node = norm.node
    original = provenance.of_original(node)
    node.resize_outputs(3)
    if options.synchronized is False:
        node.attributes.add(ir.AttrInt64("training_mode", 1))
    else:
        inferred = types.get(norm.x) if norm.x is not None else None
        _synchronize(norm, options, inferred or norm.dtype)
    provenance.write(node, dataclasses.replace(original, split_from=split_from))


def _synchronize(
    norm: BatchNorm, options: SyncBatchNormalizationOptions, dtype: ir.DataType | None
) -> None:
    node, epsilon, momentum = norm.node, norm.epsilon, norm.momentum
    node.op_type, node.domain = training_form.OP_TYPE, training_form.DOMAIN
    node.attributes.clear()
    for attribute in (
        ir.AttrFloat32("epsilon", epsilon),
        ir.AttrFloat32("momentum", momentum),
        ir.AttrInt64("axis", options.channel_axis),
        ir.AttrInt64("group_size", options.group_size or 0),
        ir.AttrInt64("unbiased", int(options.unbiased)),
        ir.AttrInt64("stash_type", training_form.stash_type(dtype)),
    ):
        node.attributes.add(attribute)


def _chain(layer: Calls, taken: set[str]) -> list[tuple[ir.Value, ir.Value]]:
    """Let each call read what the one before it wrote; return (moving statistic, last output)."""
    states: list[tuple[ir.Value, ir.Value]] = []
    for role in MOVING_ROLES:
        moving = current = layer[0].node.inputs[_INPUT_OF[role]]
        assert moving is not None
        for norm in layer:
            norm.node.replace_input_with(_INPUT_OF[role], current)
            current = norm.node.outputs[_OUTPUT_OF[role]]
            if not current.is_graph_output():
                current.type, current.shape = moving.type, moving.shape
            if norm is not layer[-1] and not current.name:
                current.name = graphs.unique_name(f"{moving.name}/{graphs.label(norm.node)}", taken)
        assert current is not None
        states.append((moving, current))
    return states


def _bind(
    model: ir.Model,
    moving: ir.Value,
    following: ir.Value,
    taken: set[str],
    bindings: dict[str, str],
) -> None:
    graph = model.graph
    if not moving.is_graph_input():
        graph.inputs.append(moving)
    if not following.name or following.name not in taken:
        following.name = graphs.unique_name(f"{moving.name}.next", taken)
    if not following.is_graph_output():
        graph.outputs.append(following)
    bindings[str(moving.name)] = following.name
