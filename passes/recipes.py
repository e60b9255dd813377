"""Which passes each command runs, and what makes a training form of any model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import onnx_ir as ir

from syncbn_convert import passes
from syncbn_convert.errors import ConversionError
from syncbn_convert.form import absence, batchnorm, provenance, training_form, weight_facts
from syncbn_convert.form.batchnorm import FIRST_OPSET_THAT_RUNS
from syncbn_convert.graph import graphs
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions, UnfuseOptions
from syncbn_convert.reports import Record
from syncbn_convert.rewriting import RewritePass, pipeline

Pass = TypeVar("Pass", bound=RewritePass)


def recognizing(options: ConvertOptions) -> Sequence[RewritePass]:
    """Return what finds every BatchNormalization of a model, in whatever spelling."""
    canonical = as_asked(passes.CanonicalizeBatchNorm, options)
    if not options.recognize:
        return (canonical,)
    return canonical, as_asked(passes.RecognizeBatchNorm, options, affine=options.recognize_affine)


def converting(options: ConvertOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `convert` for a model."""
    first, last = recognizing(options), as_asked(passes.ConvertSyncBatchNorm, options)
    told = any(map(provenance.layer_options, model.graph)) or weight_facts.get(model)
    if not options.rules.given and not told:
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
    fused = _fusing(options) if options.fuse else ()
    return (quiet, *canonical, as_asked(passes.FoldMovingStatistics, options), *fused)


def fusing(options: FuseOptions, model: ir.Model) -> Sequence[RewritePass]:
    """Return the passes of `fuse`."""
    del model
    return _fusing(options)


def _fusing(options: FoldOptions | FuseOptions) -> tuple[RewritePass, ...]:
    return (
        as_asked(passes.FuseBatchNorm, options),
        passes.FoldConstants(),
        passes.ReplaceSequences(),
        passes.RemoveIdentities(),
        passes.MergeConcats(),
        passes.MergeReshapes(),
    )


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
    if not _is_form(model):
        done = pipeline.run(model, converting(ConvertOptions(include=include), model))
        if not training_form.nodes(model):
            raise ConversionError(why_not_converted(model, done.records["convert_sync_batchnorm"]))
    return model


def to_trainable(model: ir.Model) -> list[str]:
    """Convert a model as `to_form` does, or leave it where it has nothing to convert, in place.

    Where some nodes are in training mode, those in inference mode stay there.

    Returns:
        Notes: what a user who trains the model should know.
    """
    notes = list(pipeline.run(model, [passes.UntieParameters()]).notes)
    if _is_form(model):
        return notes
    resting = _resting_beside_others(model)
    if resting:
        listed = ", ".join(f"'{name}'" for name in resting[:_NAMED])
        more = f" and {len(resting) - _NAMED} more" if len(resting) > _NAMED else ""
        notes.append(
            f"{listed}{more}: in inference mode beside others in training mode, and left there; "
            "'convert' turns all of them"
        )
    options = ConvertOptions(exclude=tuple(f"^{re.escape(name)}$" for name in resting))
    done = pipeline.run(model, converting(options, model))
    if absence.is_absent(model):
        notes.append(absence.explain(model))
    kept = [
        record
        for record in done.records["convert_sync_batchnorm"]
        if record.action != "converted" and record.node not in resting
    ]
    notes += [f"'{record.node}' keeps its statistics: {record.reason}" for record in kept[:_NAMED]]
    if len(kept) > _NAMED:
        notes.append(f"{len(kept) - _NAMED} more layers keep their statistics; see 'inspect'")
    return [*notes, *done.notes]


_NAMED = 4


def why_not_converted(model: ir.Model, records: Sequence[Record]) -> str:
    """Return why nothing was converted, by what was said of the nodes, as one line."""
    if not records:
        return absence.explain(model)
    first = records[0]
    more = f" (and {len(records) - 1} more)" if len(records) > 1 else ""
    return (
        f"{absence.NO_BATCHNORM} that can be converted: '{first.names[-1]}': {first.reason}{more}; "
        "see 'syncbn-convert inspect MODEL'"
    )


def _is_form(model: ir.Model) -> bool:
    """Whether a model is a training form; one that is not synchronized is folded first."""
    apart = provenance.unsynchronized(model)
    if training_form.nodes(model):
        training_form.check_whole(model)
        if apart:
            raise ConversionError(
                f"some layers of the form are synchronized and others, such as "
                f"'{graphs.label(apart[0])}', are not, so their statistics are not of one kind; "
                "fold the form and take the result"
            )
        return True
    if apart:
        pipeline.run(model, folding(FoldOptions(), model))
    return False


def _resting_beside_others(model: ir.Model) -> list[str]:
    """Return the nodes in inference mode, if others of the model are in training mode."""
    modes = {graphs.label(norm.node): norm.training_mode for norm, _ in batchnorm.find(model)}
    return [name for name, training in modes.items() if not training] if any(modes.values()) else []


def to_inference(model: ir.Model) -> None:
    """Fold a training form, in place; a model in inference form stays as it is."""
    pipeline.run(model, [passes.FoldMovingStatistics()])
