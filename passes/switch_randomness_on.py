"""Dropout and noise of Keras, which an import leaves off, to what they are in training."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.graph.value_types import inferred_types
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwitchRandomnessOn(RewritePass):
    """Draw what layers of Keras draw in training.

    1. An import writes such a layer as Identity, which it is in inference, and keeps in the node's
       metadata what it draws.
    2. Dropout becomes Dropout in training mode; where one draw counts for all of some axes
       (SpatialDropout, `noise_shape`), the product with Dropout of ones of that shape.
    3. GaussianDropout becomes the product with numbers of mean 1 and variance rate / (1 - rate),
       GaussianNoise the sum with numbers of mean 0.

    ```
    before   y = Identity(x)
    after    y = Dropout(x, 0.5, true)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that draws gets a record."""
        journal = Journal(logger)
        found = [
            (node, draw)
            for node in list(model.graph)
            if node.op_type == "Identity" and (draw := provenance.draw_of(node)) is not None
        ]
        types = inferred_types(model, [node.inputs[0] for node, _ in found])
        names = graphs.Names(model)
        for node, draw in found:
            x = node.inputs[0]
            assert x is not None
            _switch_on(node, x, x.dtype or types.get(x) or ir.DataType.FLOAT, draw, names)
            provenance.forget_draw(node)
            journal.add(node, "switched on", f"{draw['kind']} of layer '{draw.get('layer')}'")
        return journal.result(model, modified=bool(found))


def _switch_on(
    node: ir.Node, x: ir.Value, dtype: ir.DataType, draw: dict[str, Any], names: graphs.Names
) -> None:
    tape = Tape(lambda made: names.after_operator(made, graphs.label(node)))
    kind, shared = draw["kind"], draw.get("shared", ())
    if kind == "dropout" and not shared:
        given = [x, *_dropout_inputs(tape, draw, dtype)]
        operator = "Dropout"
    elif kind == "dropout":
        ones = tape.op("Expand", tape.constant(1.0, dtype), _shape(tape, x, shared))
        given = [x, tape.op("Dropout", ones, *_dropout_inputs(tape, draw, dtype))]
        operator = "Mul"
    elif kind == "gaussian_dropout":
        deviation = math.sqrt(draw["rate"] / (1.0 - draw["rate"]))
        given, operator = [x, tape.op("RandomNormalLike", x, mean=1.0, scale=deviation)], "Mul"
    elif kind == "gaussian_noise":
        given, operator = [x, tape.op("RandomNormalLike", x, scale=float(draw["stddev"]))], "Add"
    else:
        raise ConversionError(
            f"node '{graphs.label(node)}' draws '{kind}' in training, which this version does not "
            "know; import the model again"
        )
    assert node.graph is not None
    node.graph.insert_before(node, tape.nodes)
    node.op_type = operator
    node.resize_inputs(len(given))
    for index, value in enumerate(given):
        node.replace_input_with(index, value)


def _dropout_inputs(tape: Tape, draw: dict[str, Any], dtype: ir.DataType) -> list[ir.Value]:
    ratio = tape.constant(float(draw["rate"]), dtype)
    return [ratio, tape.constant(np.array(True), ir.DataType.BOOL)]


def _shape(tape: Tape, x: ir.Value, shared: list[int]) -> ir.Value:
    """Return the shape of `x` with size 1 on some axes, int64 [rank]."""
    shape = tape.op("Shape", x)
    axes = tape.ints(*shared)
    return tape.op("ScatterElements", shape, axes, tape.ints(*[1] * len(shared)))
