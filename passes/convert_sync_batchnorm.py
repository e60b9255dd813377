"""BatchNormalization to `syncbn::SyncBatchNormalization`, the synchronized training form."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

import onnx
import onnx.shape_inference
import onnx_ir as ir

from syncbn_convert import batchnorm, graphs, provenance, training_form, training_info
from syncbn_convert.batchnorm import MOVING_ROLES, BatchNorm
from syncbn_convert.light_proto import light_proto
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult, matches

logger = logging.getLogger(__name__)

_INPUT_OF = {"input_mean": 3, "input_var": 4}
_OUTPUT_OF = {"input_mean": 1, "input_var": 2}

_Layer = list[BatchNorm]
"""The calls of one layer: nodes that share all four parameters, in graph order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSyncBatchNorm(RewritePass):
    """Turn canonical BatchNormalization nodes into their synchronized training form.

    1. Nodes that share all four parameters are one layer called several times: each call reads the
       moving statistics that the call before it wrote. If one call cannot be converted, none is.
    2. A moving statistic that anything else uses is split off first, under a name of its own.
    3. Each moving statistic becomes a graph input beside its initializer, and its next value the
       graph output `<name>.next`, bound in `training_info`. A running output that the model has
       already keeps its name.
    4. Nodes matched by `freeze` are put in inference mode; what cannot be converted is left alone.

    ```
    before   y = BatchNormalization(x, s, b, m, v)
    after    y, m.next, v.next = syncbn.SyncBatchNormalization(x, s, b, m, v)
    ```

    Attributes:
        include: Regular expressions; only nodes whose name matches one are converted (empty: all).
        exclude: Regular expressions; nodes whose name matches one are left as they are.
        freeze: Regular expressions; nodes whose name matches one are put in inference mode.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every BatchNormalization gets a record."""
        found = list(batchnorm.find(model))
        reasons = {id(norm.node): self._reason(norm, model, at) for norm, at in found}
        _spread_reasons([norm for norm, _ in found], reasons)
        chosen = [norm for norm, _ in found if not reasons[id(norm.node)]]
        frozen = [norm for norm, _ in found if self._freezes(norm) and norm.training_mode]
        details = {id(norm.node): norm.detail() for norm, _ in found}
        journal = Journal(logger)
        for norm in frozen:
            for name in batchnorm.put_in_inference_mode(norm):
                journal.note(f"graph output '{name}' (statistic of a frozen node) was removed")
        if chosen:
            _convert(model, _layers(chosen), _input_types(model, chosen))
        for norm, location in found:
            reason = reasons[id(norm.node)]
            action = "converted" if not reason else self._action_against(norm)
            journal.add(norm.node, action, reason, location=location, **details[id(norm.node)])
        return journal.result(model, modified=bool(chosen or frozen))

    def _reason(self, norm: BatchNorm, model: ir.Model, location: str) -> str:
        name = graphs.label(norm.node)
        if matches(self.freeze, name):
            return "frozen: stays in inference mode"
        if self.include and not matches(self.include, name):
            return "not included"
        if matches(self.exclude, name):
            return "excluded"
        return batchnorm.reason_against(norm, model, location)

    def _freezes(self, norm: BatchNorm) -> bool:
        return matches(self.freeze, graphs.label(norm.node))

    def _action_against(self, norm: BatchNorm) -> str:
        return "frozen" if self._freezes(norm) else "skipped"


def _layers(norms: Iterable[BatchNorm]) -> list[_Layer]:
    layers: dict[tuple[int, ...], _Layer] = {}
    for norm in norms:
        key = tuple(id(value) for value in norm.parameters.values())
        layers.setdefault(key, []).append(norm)
    return list(layers.values())


def _spread_reasons(norms: list[BatchNorm], reasons: dict[int, str]) -> None:
    """Where one call of a layer is left alone, leave the other calls alone too."""
    for layer in _layers(norms):
        refused = [norm for norm in layer if reasons[id(norm.node)]]
        for norm in layer if refused else ():
            if not reasons[id(norm.node)]:
                other = graphs.label(refused[0].node)
                reasons[id(norm.node)] = (
                    f"one layer with node '{other}', which is left alone "
                    f"({reasons[id(refused[0].node)]})"
                )


def _input_types(model: ir.Model, norms: list[BatchNorm]) -> dict[str, int]:
    """Return the inferred element types of values, if the model leaves that of an input open."""
    if all(norm.x is not None and norm.x.dtype is not None for norm in norms):
        return {}
    proto = onnx.shape_inference.infer_shapes(light_proto(model))
    return {info.name: info.type.tensor_type.elem_type for info in proto.graph.value_info}


def _convert(model: ir.Model, layers: list[_Layer], types: dict[str, int]) -> None:
    taken = graphs.used_names(model)
    bindings = training_info.update_bindings(model)
    training_form.add_to(model, graphs.opset_version(model))
    states: list[tuple[ir.Value, ir.Value]] = []
    order = {id(node): index for index, node in enumerate(model.graph)}
    for layer in layers:
        splits = {role: _split_if_shared(layer, role, model, taken) for role in MOVING_ROLES}
        for norm in layer:
            split_from = {role: name for role, name in splits.items() if name}
            _convert_node(norm, split_from, types)
        states.extend(_chain(layer, taken))
    states.sort(key=lambda state: order[id(state[1].producer())])
    for moving, following in states:
        _bind(model, moving, following, taken, bindings)
    training_info.set_update_bindings(model, bindings)


def _split_if_shared(
    layer: _Layer,
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


def _convert_node(norm: BatchNorm, split_from: dict[str, str], types: dict[str, int]) -> None:
    node = norm.node
    original = provenance.of_original(node)
    epsilon, momentum = norm.epsilon, norm.momentum
    inferred = types.get(str(norm.x.name)) if norm.x is not None else None
    dtype = ir.DataType(inferred) if inferred else norm.dtype
    node.op_type, node.domain = training_form.OP_TYPE, training_form.DOMAIN
    node.resize_outputs(3)
    node.attributes.clear()
    for attribute in (
        ir.AttrFloat32("epsilon", epsilon),
        ir.AttrFloat32("momentum", momentum),
        ir.AttrInt64("axis", 1),
        ir.AttrInt64("group_size", 0),
        ir.AttrInt64("unbiased", 0),
        ir.AttrInt64("stash_type", training_form.stash_type(dtype)),
    ):
        node.attributes.add(attribute)
    provenance.write(node, dataclasses.replace(original, split_from=split_from))


def _chain(layer: _Layer, taken: set[str]) -> list[tuple[ir.Value, ir.Value]]:
    """Let each call read what the one before it wrote; return (moving statistic, last output)."""
    states: list[tuple[ir.Value, ir.Value]] = []
    for role in MOVING_ROLES:
        moving = current = layer[0].node.inputs[_INPUT_OF[role]]
        assert moving is not None
        for norm in layer:
            norm.node.replace_input_with(_INPUT_OF[role], current)
            current = norm.node.outputs[_OUTPUT_OF[role]]
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
