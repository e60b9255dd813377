"""Inference-mode BatchNormalization, and affine maps like it, into the weights around it."""

from __future__ import annotations

import dataclasses
import logging

import onnx_ir as ir

from syncbn_convert.graph import value_types
from syncbn_convert.graph.inlining import inline
from syncbn_convert.passes.fusion import calls
from syncbn_convert.passes.fusion.fuser import Fuser
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseBatchNorm(RewritePass):
    """Let every BatchNormalization in inference mode disappear into weights, where that is exact.

    1. Into what makes its input: Conv, ConvTranspose, Gemm, MatMul with a constant operand; through
       Identity, inference Dropout, Transpose, Squeeze, Unsqueeze, Reshape and Flatten that keep the
       channels, average pools, Concat of channels, and further affine maps per channel (Add, Sub,
       Mul, Div with constants, BatchNormalization), which are fused along.
    2. Else into a BatchNormalization before it; else into the Conv without padding, the Gemm or the
       MatMul that reads it, also through Flatten.
    3. Affine maps per channel that stand alone go the same ways.
    4. Model-local functions are inlined where that lets a normalization go.
    5. Weights are computed in float64 and rounded once to their own type. Weights that others read
       are copied. Constants may be computed: initializers that Reshape, Slice, Concat, Expand, Exp
       and the like are applied to.
    6. What takes a normalization's place has the name of its output, and what is written about
       values, nodes and weights stays. Values that now hold other numbers get other names.
    7. What would change the function is left alone: training mode, parameters and weights that a
       caller may feed or that are computed, values that are returned or read elsewhere too, results
       that overflow or underflow.

    ```
    before   t = Conv(x, w)  y = BatchNormalization(t, s, b, m, v)
    after    y = Conv(x, w * s / sqrt(v + epsilon), b - m * s / sqrt(v + epsilon))
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place.

        Every BatchNormalization gets a record, and every affine map that was fused.
        """
        with value_types.stated(model):
            return self._fuse(model)

    def _fuse(self, model: ir.Model) -> RewriteResult:
        journal = Journal(logger)
        fuser = Fuser(model)
        outcomes = fuser.fuse()
        modified = fuser.modified
        callees = calls.helpful(model, fuser.callees)
        if callees:
            inline(model, callees)
            journal.note(f"model-local functions were inlined: {calls.listed(callees)}")
            outcomes = [outcome for outcome in outcomes if outcome.action == "fused"]
            outcomes += Fuser(model).fuse()
            modified = True
        for outcome in outcomes:
            journal.add(
                outcome.name,
                outcome.action,
                outcome.reason,
                location=outcome.location,
                module=outcome.module,
                **({"operator": outcome.operator} if outcome.operator else {}),
            )
        return journal.result(model, modified=modified)
