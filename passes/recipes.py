"""Which passes `convert`, `fold` and `fuse` run, and what makes a training form of any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from syncbn_convert import passes
from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, training_form
from syncbn_convert.form.batchnorm import FIRST_OPSET_THAT_RUNS
from syncbn_convert.graph import graphs
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions, UnfuseOptions
from syncbn_convert.rewriting import RewritePass, pipeline

NO_BATCHNORM = "the model holds no BatchNormalization"


def recognizing(options: ConvertOptions) -> Sequence[RewritePass]:
    """Return what finds every BatchNormalization of a model, in whatever spelling."""
    canonical = passes.CanonicalizeBatchNorm(opset=options.opset)
    if not options.recognize:
        return (canonical,)
    return canonical, passes.RecognizeBatchNorm(
        affine=options.recognize_affine, **selection(options)
    )


def converting(options: ConvertOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `convert` for a model."""
    selected = selection(options)
    first, last = recognizing(options), passes.ConvertSyncBatchNorm(**selected)
    if not options.rules.given and not any(map(provenance.layer_options, model.graph)):
        return *first, last
    return (
        *first,
        passes.ConfigureBatchNorm(**selected),
        passes.RegularizeParameters(**selected),
        passes.ConstrainParameters(**selected),
        last,
    )


def folding(options: FoldOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `fold` for a model."""
    rises = options.opset or graphs.opset_version(model) < FIRST_OPSET_THAT_RUNS
    canonical = (passes.CanonicalizeBatchNorm(opset=options.opset),) if rises else ()
    fused = (passes.FuseBatchNorm(),) if options.fuse else ()
    return (*canonical, passes.FoldMovingStatistics(keep_batchnorm=options.keep_batchnorm), *fused)


def fusing(options: FuseOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `fuse`."""
    del options, model
    return (passes.FuseBatchNorm(),)


def unfusing(
    options: UnfuseOptions, statistics: dict[str, tuple[Any, Any]] | None = None
) -> Sequence[RewritePass]:
    """Return the passes of `unfuse`, with mean and variance by name of the node once known."""
    return (
        passes.InsertBatchNorm(
            include=options.include,
            exclude=options.exclude,
            epsilon=options.epsilon,
            momentum=options.momentum,
            statistics=statistics,
        ),
    )


def selection(options: ConvertOptions) -> dict[str, Any]:
    """Return what tells a pass which nodes it is about, and with which options."""
    return {
        "include": options.include,
        "exclude": options.exclude,
        "freeze": options.freeze,
        "rules": options.rules,
    }


def to_form(model: ir.Model, *, include: tuple[str, ...] = ()) -> ir.Model:
    """Convert a model as `convert` does by default, in place; a training form stays as it is.

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
        pipeline.run(model, folding(FoldOptions(), model))
    options = ConvertOptions(include=include)
    pipeline.run(model, [*recognizing(options), passes.ConvertSyncBatchNorm(include=include)])
    if not training_form.nodes(model):
        raise ConversionError(
            f"{NO_BATCHNORM} that can be converted; see 'syncbn-convert inspect MODEL'"
        )
    return model


def to_inference(model: ir.Model) -> None:
    """Fold a training form, in place; a model in inference form stays as it is."""
    pipeline.run(model, [passes.FoldMovingStatistics()])
