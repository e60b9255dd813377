"""Dropout and stochastic depth, left in training mode, to what they are in inference."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.graph import constants, graphs, random_nodes
from syncbn_convert.passes.randomness import masks
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwitchRandomnessOff(RewritePass):
    """Switch off what draws random numbers in training only.

    1. A Dropout in training mode, in any body and function, loses its `training_mode` (`is_test`
       becomes 1 until opset 6): it passes on what comes in, and its mask is all true. One whose
       mode the caller feeds is left alone, unless `fed`.
    2. Stochastic depth: a mask of zeros and ones that is multiplied onto a value and divided by the
       share of ones (Bernoulli; RandomUniform compared with a constant, or added to one and taken
       Floor of), before, on or after the product. The product becomes Identity, or Mul by ones
       where the mask could have more elements than the value.
    3. Anything else that draws random numbers is left alone, and named.

    ```
    before   y = Dropout(x, ratio, true)
    after    y = Dropout(x, ratio)
    ```

    Attributes:
        fed: Whether to switch Dropout off too where the caller feeds its mode.
    """

    fed: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that draws random numbers gets a record."""
        journal = Journal(logger)
        modified = False
        found = list(random_nodes.find(model))
        finder = masks.Finder(model) if found else None
        for node, location, function in found:
            if "Dropout" in node.op_type:
                reason = "" if self.fed else _reason_against(node, model)
            else:
                assert finder is not None
                reason = finder.switch_off(node, function)
            if reason:
                journal.add(node, "left random", reason, location=location)
                continue
            modified = True
            what = "stochastic depth"
            if "Dropout" in node.op_type:
                what = "dropout"
                _put_in_inference_mode(node)
            journal.add(node, "switched off", f"{what} switched off", location=location)
        return journal.result(model, modified=modified)


def _reason_against(node: ir.Node, model: ir.Model) -> str:
    index = random_nodes.mode_input(node)
    mode = node.inputs[index] if index < len(node.inputs) else None
    if mode is None or constants.constant_tensor(mode, model) is not None:
        return ""
    return f"its mode '{mode.name}' is no constant, so its caller decides"


def _put_in_inference_mode(node: ir.Node) -> None:
    index = random_nodes.mode_input(node)
    mode = node.inputs[index] if index < len(node.inputs) else None
    if mode is None:
        node.attributes.add(ir.AttrInt64("is_test", 1))
        return
    ratio = node.inputs[index - 1]
    node.resize_inputs(index if ratio is not None else index - 1)
    graphs.remove_dead_producers([mode])
    if mode.is_initializer() and not mode.uses() and not mode.is_graph_input():
        owner = mode.graph
        if owner is not None and not mode.is_graph_output():
            del owner.initializers[str(mode.name)]
