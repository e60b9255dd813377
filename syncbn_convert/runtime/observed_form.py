"""The training form with the sums of every AllReduce as outputs."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from syncbn_convert.errors import UsageError
from syncbn_convert.files import model_file
from syncbn_convert.files.tensors import external_tensor
from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs


def observe(form: ir.Model) -> list[ir.Value]:
    """Return each node's total, in graph order, as a further output of `form`, in place.

    A total is float64 [2C + 1]: global count, count * mean, count * (variance + mean^2). The nodes'
    function stays the form's own, so that what runs, and is audited, is what the form says.

    Raises:
        UsageError: if the function does not sum once over the replicas of a node's group.
    """
    taken = graphs.used_names(form)
    nodes = training_form.nodes(form)
    if not nodes:
        return []
    function = _function_with_total(form, graphs.label(nodes[0]))
    index = len(function.outputs) - 1
    totals: list[ir.Value] = []
    for node in nodes:
        node.resize_outputs(index + 1)
        for unused in node.outputs:
            unused.name = unused.name or ""
        total = node.outputs[index]
        total.name = graphs.unique_name(f"{graphs.label(node)}.total", taken)
        total.type = ir.TensorType(ir.DataType.DOUBLE)
        total.shape = ir.Shape([None])
        totals.append(total)
    form.graph.outputs.extend(totals)
    return totals


def _function_with_total(form: ir.Model, label: str) -> ir.Function:
    """Let the function of the form's nodes return what its AllReduce does, as its last output."""
    key = (training_form.DOMAIN, training_form.OP_TYPE, "")
    function = form.functions.get(key)
    sums = [] if function is None else training_form.all_reduces(function)
    groups = [node.attributes.get("group_size") for node in sums]
    if function is None or [group and group.ref_attr_name for group in groups] != ["group_size"]:
        raise UsageError(
            f"node '{label}': the function '{training_form.OP_TYPE}' of the model does not call "
            f"{training_form.ALL_REDUCE} once, with the node's group_size, so replicas would not "
            "share their statistics; convert the original model again"
        )
    function.outputs.append(sums[0].outputs[0])
    return function


def digest(form: ir.Model) -> str:
    """Return the SHA-256 of the model's bytes, weights included."""
    found = hashlib.sha256()
    proto = model_file.to_proto(form)
    for initializer in form.graph.initializers.values():
        tensor = initializer.const_value
        if isinstance(tensor, ir.ExternalTensor):
            own = external_tensor(tensor, tensor.location, tensor.offset, tensor.base_dir)
            found.update(str(initializer.name).encode())
            found.update(own.tobytes())
            own.release()
    found.update(proto.SerializeToString(deterministic=True))
    return found.hexdigest()
