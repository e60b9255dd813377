"""Parameters that an exporter tied because their values were equal, each on its own again."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import provenance, weight_facts
from syncbn_convert.form.batchnorm import is_batchnorm
from syncbn_convert.graph import graphs
from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

_NAMED = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class UntieParameters(RewritePass):
    """Let parameters that an exporter tied by Identity be trained each on its own.

    1. The older exporter of PyTorch stores equal tensors once: `Identity` of one stands for the
       others. Of a fresh model that ties every bias of zeros and every scale of ones of a size.
       Where all elements are equal, each name becomes an initializer of its own again.
    2. Tensors of unequal elements are equal because somebody tied them, such as an embedding and
       the layer that reads it backwards; they stay one parameter, and a note names them.
    3. Where nodes read one initializer of equal elements themselves, nothing tells a merged one
       from a shared one; it stays one parameter, and a note says so.

    ```
    before   second.bias = Identity(first.bias)
    after    float[8] second.bias = {0, ...}
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every parameter that was tied gets a record."""
        journal = Journal(logger)
        untied: list[str] = []
        tied: list[str] = []
        modified = False
        for node in list(model.graph):
            source = _tied_to(node)
            if source is None:
                continue
            output = node.outputs[0]
            pair = f"'{output.name}' and '{source.name}'"
            if not _is_uniform(source):
                tied.append(pair)
                journal.add(str(output.name), "kept", f"one parameter with '{source.name}'")
                continue
            normalized = all(map(is_batchnorm, (usage.node for usage in output.uses())))
            if not normalized:  # whose parameters are taken apart in any case
                untied.append(pair)
            modified = True
            journal.add(str(output.name), "untied", f"was Identity of '{source.name}'")
            _untie(model, node, source, output)
        if untied:
            journal.note(
                f"{_listed(untied)}: tied in the file as equal values, and trained each on its own"
            )
        if tied:
            journal.note(f"{_listed(tied)}: tied in the file, and trained as one parameter")
        for name, readers in _merged(model):
            journal.note(
                f"'{name}' is one parameter of {_listed(readers)}; if an exporter merged equal "
                "values there, export the model without that"
            )
        return journal.result(model, modified=modified)


def _tied_to(node: ir.Node) -> ir.Value | None:
    """Return the parameter that a node only gives another name; None if it does not."""
    if node.op_type != "Identity" or node.domain not in graphs.STANDARD_DOMAINS:
        return None
    source, output = node.inputs[0], node.outputs[0]
    if source is None or not source.is_initializer() or source.is_graph_input():
        return None
    tensor = source.const_value
    if tensor is None or not len(tensor.shape) or not is_floating(tensor.dtype.numpy()):
        return None
    return None if output.is_graph_output() or provenance.draw_of(node) else source


def _is_uniform(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy().reshape(-1)
    return bool(array.size) and bool((array == array[0]).all())


def _untie(model: ir.Model, node: ir.Node, source: ir.Value, output: ir.Value) -> None:
    tensor = source.const_value
    assert tensor is not None
    name = str(output.name)
    output.name = f"{name}\0tied"
    own = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=ir.tensor(np.array(tensor.numpy()), name=name, dtype=tensor.dtype),
    )
    model.graph.register_initializer(own)
    output.replace_all_uses_with(own)
    model.graph.remove(node, safe=True)
    facts = weight_facts.get(model).get(str(source.name))
    if facts is not None:
        weight_facts.add(model, name, facts)


def _merged(model: ir.Model) -> list[tuple[str, list[str]]]:
    """Return vectors of equal elements that several normalizations read, and these."""
    found = []
    for name, value in model.graph.initializers.items():
        uses = [
            usage.node
            for usage in value.uses()
            if usage.node.op_type in _NORMALIZING and usage.idx in (1, 2)
        ]
        if len(uses) < 2 or value.const_value is None or not _is_uniform(value):
            continue
        found.append((name, [f"'{graphs.label(reader)}'" for reader in uses]))
    return found


_NORMALIZING = (
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
