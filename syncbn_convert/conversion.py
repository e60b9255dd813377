"""From any model to a training form with default options, as calibration needs it."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert import graphs, passes, pipeline, provenance, training_form
from syncbn_convert.errors import ConversionError


def to_form(model: ir.Model, *, include: tuple[str, ...] = ()) -> ir.Model:
    """Convert a model with BatchNormalization in place; a training form stays as it is.

    Args:
        model: What to convert.
        include: Regular expressions; only nodes whose name matches one are converted (empty: all).

    Raises:
        ConversionError: if nothing in it can be converted.
    """
    apart = provenance.unsynchronized(model)
    if training_form.nodes(model):
        if apart:
            raise ConversionError(
                f"some layers of the form are synchronized and others, such as "
                f"'{graphs.label(apart[0])}', are not, so their statistics are not of one kind; "
                "fold the form and take the result"
            )
        return model
    if apart:
        passes.FoldMovingStatistics()(model)
    conversion = [passes.CanonicalizeBatchNorm(), passes.ConvertSyncBatchNorm(include=include)]
    pipeline.run(model, conversion)
    if not training_form.nodes(model):
        raise ConversionError(
            "the model holds no BatchNormalization that can be converted; see 'syncbn-convert "
            "inspect MODEL'"
        )
    return model
