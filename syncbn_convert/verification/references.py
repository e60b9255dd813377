"""What a rewritten model is compared with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import batchnorm, training_form
from syncbn_convert.form.batchnorm import FIRST_OPSET_THAT_RUNS, PARAMETER_ROLES, BatchNorm
from syncbn_convert.graph import channel_axis, constants, graphs, inference_formula, module_names
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.graph.value_types import infer_shapes_of
from syncbn_convert.options.layers import SyncBatchNormalizationOptions
from syncbn_convert.passes import CanonicalizeBatchNorm, regularize_parameters
from syncbn_convert.rewriting import pipeline
from syncbn_convert.rewriting.selection import SelectingPass

_DISTINCT = 12345.0


def inference_reference(model: ir.Model) -> bool:
    """Replace each training-mode and synchronized node by the inference formula, in place.

    Written independently of the passes: elementwise operators on X, scale, B and the moving
    statistics. The output of the regularizers goes. Returns whether there was any.
    """
    training = [
        norm.node
        for norm, location in batchnorm.find(model)
        if (norm.training_mode or norm.mode_lost)
        and not batchnorm.reason_against_folding(norm, location)
    ]
    synchronized = training_form.nodes(model)
    taken = graphs.used_names(model)
    for node in (*training, *synchronized):
        _spell_out(node, model, node.attributes.get_int("axis", 1), taken)
    if synchronized:
        training_form.remove_from(model)
    penalized = regularize_parameters.remove_from(model) is not None
    return bool(training or synchronized or penalized)


def make_runnable(reference: ir.Model) -> tuple[str, ...]:
    """Raise an opset whose BatchNormalization no runtime here runs; return a note about it.

    It rises to the first that runs, so that what is compared holds the rest of a rise to it; with a
    node in training mode, which that cannot say without outputs to say it, to the training form's.
    """
    opset = graphs.opset_version(reference)
    if opset >= FIRST_OPSET_THAT_RUNS:
        return ()
    training = any(norm.training_mode for norm, _ in batchnorm.find(reference))
    raise_to(reference, training_form.MIN_OPSET if training else FIRST_OPSET_THAT_RUNS)
    return (
        f"ONNX Runtime runs no BatchNormalization of opset {opset}: the model was compared from "
        f"opset {graphs.opset_version(reference)} on, and the rise to it was not",
    )


def raise_to(model: ir.Model, opset: int) -> None:
    """Raise a model to an opset, in place; one that has it already, or a higher one, stays."""
    if graphs.opset_version(model) < opset:
        pipeline.run(model, [CanonicalizeBatchNorm(opset=opset)])


def make_statistics_distinct(model: ir.Model) -> bool:
    """Give training-mode nodes moving statistics that no other initializer holds, in place.

    Their outputs do not depend on them. ONNX Runtime merges equal initializers, and its kernel for
    training mode writes over these two: over a gamma of ones, where the moving variance is 1, too.
    Nodes whose running statistics are used, and statistics that something else reads, stay.

    Returns:
        Whether there was any to change.
    """
    changed = False
    for number, (norm, location) in enumerate(batchnorm.find(model)):
        for sign, role in ((-1, "input_mean"), (1, "input_var")):
            value = norm.parameters.get(role)
            if location or value is None or not _is_written_over_alone(value, norm):
                continue
            tensor = value.const_value
            assert tensor is not None
            filled = np.full(tensor.shape.numpy(), sign * (_DISTINCT + number))
            value.const_value = ir.tensor(
                filled.astype(tensor.dtype.numpy()), name=value.name, dtype=tensor.dtype
            )
            changed = True
    return changed


def _is_written_over_alone(statistic: ir.Value, norm: BatchNorm) -> bool:
    """Whether nothing but the training-mode kernel of `norm` sees a moving statistic."""
    running = [output for output in norm.running_outputs if output is not None]
    return (
        norm.training_mode
        and statistic.is_initializer()
        and statistic.const_value is not None
        and not statistic.is_graph_output()
        and all(usage.node is norm.node for usage in statistic.uses())
        and not any(output.uses() or output.is_graph_output() for output in running)
    )


def take_parameters(original: ir.Model, form: ir.Model, selection: SelectingPass) -> None:
    """Give nodes of `original` what options were given for: values, epsilon, axis of a form's.

    Nodes are matched by the name of their first output. What no option was given for stays as it
    is; so what is compared afterwards is all but these, and that the form computes with what it
    holds.
    """
    wanted = {
        str(node.outputs[0].name): node
        for node in form.graph
        if batchnorm.is_batchnorm(node) or training_form.is_sync_batchnorm(node)
    }
    found = batchnorm.find(original)
    names = {str(norm.node.outputs[0].name) for norm, location in found if not location}
    if not names.issuperset(wanted) or graphs.opset_version(original) < FIRST_OPSET_THAT_RUNS:
        pipeline.run(original, [CanonicalizeBatchNorm()])
    taken = graphs.used_names(original)
    moved = {name for name, node in wanted.items() if node.attributes.get_int("axis", 1) != 1}
    norms = list(batchnorm.find(original))
    infer_shapes_of(original, (n.x for n, _ in norms if n.node.outputs[0].name in moved))
    for norm, location in norms:
        own = wanted.get(str(norm.node.outputs[0].name))
        options = selection.options_of(*module_names.names_of(norm.node))
        if own is not None and options is not None and not location:
            _take(norm, own, options, original, form, taken)


def _take(
    norm: BatchNorm,
    own: ir.Node,
    options: SyncBatchNormalizationOptions,
    original: ir.Model,
    form: ir.Model,
    taken: set[str],
) -> None:
    for role in options.changed_roles:
        index = 1 + PARAMETER_ROLES.index(role)
        _take_parameter(norm.node, index, own.inputs[index], original, form, taken)
    if options.epsilon is not None:
        epsilon = BatchNorm(own, training_form.MIN_OPSET).epsilon
        norm.node.attributes.add(ir.AttrFloat32("epsilon", epsilon))
    axis = own.attributes.get_int("axis", 1)
    if options.axis is not None and not channel_axis.is_first(axis, norm.rank):
        _spell_out(norm.node, original, axis, taken)


def _take_parameter(
    node: ir.Node,
    index: int,
    given: ir.Value | None,
    original: ir.Model,
    form: ir.Model,
    taken: set[str],
) -> None:
    old, tensor = node.inputs[index], _tensor(given, form)
    if old is None or tensor is None:
        return
    known = old.const_value if old.is_initializer() else constants.constant_tensor(old, original)
    if known is not None and np.array_equal(known.numpy(), tensor.numpy()):
        return
    copy = ir.tensor(tensor.numpy(), name=old.name, dtype=tensor.dtype)
    if given is not None and given.is_graph_input() and given.name == old.name:
        old.const_value = copy
        return
    name = graphs.unique_name(f"{graphs.label(node)}/{PARAMETER_ROLES[index - 1]}", taken)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=ir.tensor(tensor.numpy(), name=name, dtype=tensor.dtype),
    )
    original.graph.register_initializer(value)
    if (original.ir_version or 0) < FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS:
        original.graph.inputs.append(value)
    node.replace_input_with(index, value)


def _tensor(value: ir.Value | None, form: ir.Model) -> ir.TensorProtocol | None:
    """Return a parameter, through the calls that moved it on its way."""
    while value is not None and (producer := value.producer()) is not None and value.index():
        value = producer.inputs[int(value.index() or 0) + 2]
    if value is None:
        return None
    return value.const_value if value.is_initializer() else constants.constant_tensor(value, form)


def _spell_out(node: ir.Node, model: ir.Model, axis: int, taken: set[str]) -> None:
    epsilon = BatchNorm(node, graphs.opset_version(model)).epsilon
    _read_moving_statistics(node)
    inference_formula.replace_by_elementwise(node, epsilon=epsilon, taken=taken, axis=axis)


def _read_moving_statistics(node: ir.Node) -> None:
    """Let what reads a running output read the statistic itself, and return it no more."""
    assert node.graph is not None
    for index, output in enumerate(node.outputs[1:], start=1):
        graphs.remove_from(node.graph.outputs, [output])
        moving = node.inputs[index + 2] if index < 3 else None
        if moving is not None:
            output.replace_all_uses_with(moving)
