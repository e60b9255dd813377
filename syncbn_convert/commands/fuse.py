"""`fuse`: BatchNormalization in inference mode into the weights around it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import onnx_ir as ir

from syncbn_convert.commands.run import (
    Checks,
    FileChecks,
    Result,
    Rewrite,
    Run,
    ShowStage,
    in_memory,
    to_file,
)
from syncbn_convert.errors import ConversionError
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import absence, batchnorm, training_form
from syncbn_convert.options.rewrites import FuseOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import WritingOptions
from syncbn_convert.passes import recipes
from syncbn_convert.passes.fusion.affine import TRAINING_MODE
from syncbn_convert.reports import Record, RewriteReport
from syncbn_convert.rewriting.contract import RewritePass
from syncbn_convert.verification import verdicts


def run(
    path: Path,
    options: FuseOptions,
    writing: WritingOptions,
    verifying: Verifying,
    *,
    page: Path | None,
    show_stage: ShowStage,
) -> Result[RewriteReport]:
    """Do what the command does; errors are those of `fuse_file`."""
    return Run(Fusion(options), verifying, show_stage).to_file(path, writing, page)


def fuse(model: ModelLike, options: FuseOptions = FuseOptions(), **checks: Unpack[Checks]) -> Model:
    """Return `model` with its normalization in the weights; see `fuse_with_report`."""
    return fuse_with_report(model, options, **checks)[0]


def fuse_with_report(
    model: ModelLike, options: FuseOptions = FuseOptions(), **checks: Unpack[Checks]
) -> tuple[Model, RewriteReport]:
    """Let BatchNormalization in inference mode disappear into the weights around it.

    Arguments, results and errors are those of `convert_with_report`.
    """
    return in_memory(Fusion(options), model, checks)


def fuse_file(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    options: FuseOptions = FuseOptions(),
    **given: Unpack[FileChecks],
) -> tuple[Path | None, RewriteReport]:
    """Fuse a file into another (default `<name>.fused.onnx`); otherwise as `convert_file`."""
    return to_file(Fusion(options), input, output, given)


class Fusion(Rewrite[FuseOptions]):
    """What `fuse` does."""

    name = "fuse"
    kind = "fused"
    options_type = FuseOptions
    main_pass = "fuse_batchnorm"

    def passes(self, model: ir.Model) -> Sequence[RewritePass]:
        """Return the passes for a model."""
        return recipes.fusing(self.options, model)

    def check(self, model: ir.Model, records: Sequence[Record], *, modified: bool) -> Sequence[str]:
        """Refuse what has to be folded first; return a note where nothing was done.

        Raises:
            ConversionError: also where nothing was done and that is to be an error.
        """
        if not records and training_form.nodes(model):
            raise ConversionError(
                "the model is a training form; fold it first, or use 'syncbn-convert fold --fuse'"
            )
        if records and all(record.reason == TRAINING_MODE for record in records):
            raise ConversionError(
                f"none of the {len(records)} BatchNormalization nodes can be fused, as all are in "
                "training mode; fold the model first, or use 'syncbn-convert fold --fuse'"
            )
        lost = next((record for record in records if record.reason == batchnorm.MODE_LOST), None)
        if lost is not None:
            raise ConversionError(
                f"node '{lost.node}' cannot be fused: {lost.reason}, and 'syncbn-convert fold "
                "--fuse' does both"
            )
        if any(record.action == "fused" for record in records):
            return ()
        note = _unchanged(model, records)
        if self.options.fail_if_unchanged and not modified:
            raise ConversionError(note)
        return (note,)

    def verify(self, original: Path, result: Path, options: VerifyOptions) -> verdicts.Verdict:
        """Compare the two as functions."""
        return verdicts.verify_same_function(original, result, options)


def _unchanged(model: ir.Model, records: Sequence[Record]) -> str:
    if not records:
        return f"nothing to fuse, nor an affine map behind weights: {absence.explain(model)}"
    first = records[0]
    return (
        f"nothing to fuse: none of the {len(records)} BatchNormalization nodes can be fused; "
        f"'{first.node}': {first.reason}"
    )
