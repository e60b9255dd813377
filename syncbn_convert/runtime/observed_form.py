"""The training form with the sums of every AllReduce as outputs."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from syncbn_convert.files import model_file
from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs


def observe(form: ir.Model) -> list[ir.Value]:
    """Return each node's total, in graph order, as a further output of `form`, in place.

    A total is float64 [2C + 1]: global count, count * mean, count * (variance + mean^2).
    """
    taken = graphs.used_names(form)
    training_form.add_to(form, graphs.opset_version(form), observed=True)
    index = training_form.SAVED.stop if training_form.returns_saved(form) else 3
    totals: list[ir.Value] = []
    for node in training_form.nodes(form):
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


def digest(form: ir.Model) -> str:
    """Return the SHA-256 of the model's bytes, weights included."""
    found = hashlib.sha256()
    proto = model_file.to_proto(form)
    for initializer in form.graph.initializers.values():
        if isinstance(initializer.const_value, ir.ExternalTensor):
            found.update(str(initializer.name).encode())
            found.update(initializer.const_value.tobytes())
            initializer.const_value.release()
    found.update(proto.SerializeToString(deterministic=True))
    return found.hexdigest()
