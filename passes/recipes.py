"""Which passes each command runs, and what makes a training form of any model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import onnx_ir as ir

from syncbn_convert import passes
from syncbn_convert.errors import ConversionError
from syncbn_convert.form import provenance, training_form
from syncbn_convert.form.batchnorm import FIRST_OPSET_THAT_RUNS
from syncbn_convert.graph import graphs
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions, UnfuseOptions
from syncbn_convert.rewriting import RewritePass, pipeline

Pass = TypeVar("Pass", bound=RewritePass)

NO_BATCHNORM = "the model holds no BatchNormalization"


def recognizing(options: ConvertOptions) -> Sequence[RewritePass]:
    """Return what finds every BatchNormalization of a model, in whatever spelling."""
    canonical = as_asked(passes.CanonicalizeBatchNorm, options)
    if not options.recognize:
        return (canonical,)
    return canonical, as_asked(passes.RecognizeBatchNorm, options, affine=options.recognize_affine)


def converting(options: ConvertOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `convert` for a model."""
    first, last = recognizing(options), as_asked(passes.ConvertSyncBatchNorm, options)
    if not options.rules.given and not any(map(provenance.layer_options, model.graph)):
        return *first, last
    return (
        *first,
        as_asked(passes.ConfigureBatchNorm, options),
        as_asked(passes.RegularizeParameters, options),
        as_asked(passes.ConstrainParameters, options),
        last,
    )


def folding(options: FoldOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `fold` for a model."""
    quiet = passes.SwitchRandomnessOff()
    rises = options.opset or graphs.opset_version(model) < FIRST_OPSET_THAT_RUNS
    canonical = (as_asked(passes.CanonicalizeBatchNorm, options),) if rises else ()
    fused = (as_asked(passes.FuseBatchNorm, options),) if options.fuse else ()
    return (quiet, *canonical, as_asked(passes.FoldMovingStatistics, options), *fused)


def fusing(options: FuseOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `fuse`."""
    del model
    return (as_asked(passes.FuseBatchNorm, options),)


def unfusing(
    options: UnfuseOptions, statistics: dict[str, tuple[Any, Any]] | None = None
) -> Sequence[RewritePass]:
    """Return the passes of `unfuse`, with mean and variance by name of the node once known."""
    return (as_asked(passes.InsertBatchNorm, options, statistics=statistics),)


def as_asked(kind: type[Pass], options: object, **given: Any) -> Pass:
    """Return a pass whose fields are the options of the same name, and what else is given."""
    shared = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(kind)
        if hasattr(options, field.name)
    }
    return kind(**{**shared, **given})


def to_form(model: ir.Model, *, include: tuple[str, ...] = ()) -> ir.Model:
    """Convert a model, attributes and parameters as they are, in place; a form stays as it is.

    Args:
        model: What to convert.
        include: Regular expressions; only nodes whose name matches one are converted (empty: all).

    Raises:
        ConversionError: if nothing in it can be converted, or the form is not whole.
    """
    apart = provenance.unsynchronized(model)
    if training_form.nodes(model):
        training_form.check_whole(model)
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
    pipeline.run(model, [*recognizing(options), as_asked(passes.ConvertSyncBatchNorm, options)])
    if not training_form.nodes(model):
        raise ConversionError(
            f"{NO_BATCHNORM} that can be converted; see 'syncbn-convert inspect MODEL'"
        )
    return model


def to_inference(model: ir.Model) -> None:
    """Fold a training form, in place; a model in inference form stays as it is."""
    pipeline.run(model, [passes.FoldMovingStatistics()])
