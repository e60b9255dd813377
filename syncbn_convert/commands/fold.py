"""`fold`: a training form, or a model left in training mode, to inference form."""

from __future__ import annotations

import functools
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
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import absence, moving_statistics
from syncbn_convert.keras import reading
from syncbn_convert.keras.reading import Source
from syncbn_convert.options.rewrites import FoldOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import WritingOptions
from syncbn_convert.passes import recipes
from syncbn_convert.reports import Record, RewriteReport
from syncbn_convert.rewriting.contract import RewritePass
from syncbn_convert.verification import verdicts


def run(
    path: Path,
    options: FoldOptions,
    writing: WritingOptions,
    verifying: Verifying,
    *,
    page: Path | None,
    show_stage: ShowStage,
) -> Result[RewriteReport]:
    """Do what the command does; errors are those of `fold_file`."""
    return Run(Folding(options), verifying, show_stage).to_file(path, writing, page)


def fold(model: ModelLike, options: FoldOptions = FoldOptions(), **checks: Unpack[Checks]) -> Model:
    """Return the inference form of `model`; see `fold_with_report`."""
    return fold_with_report(model, options, **checks)[0]


def fold_with_report(
    model: ModelLike, options: FoldOptions = FoldOptions(), **checks: Unpack[Checks]
) -> tuple[Model, RewriteReport]:
    """Turn a training form, or a model left in training mode, into inference form.

    Arguments, results and errors are those of `convert_with_report`.
    """
    return in_memory(Folding(options), model, checks)


def fold_file(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    options: FoldOptions = FoldOptions(),
    **given: Unpack[FileChecks],
) -> tuple[Path | None, RewriteReport]:
    """Fold a file into another (default `<name>.deploy.onnx`); otherwise as `convert_file`."""
    return to_file(Folding(options), input, output, given)


_NOTHING = (
    "nothing to fold: the model holds no SyncBatchNormalization and no BatchNormalization in "
    "training mode; it is in inference form already, which 'syncbn-convert fuse' puts into the "
    "weights"
)


def _nothing_in(model: ir.Model) -> str:
    return f"nothing to fold: {absence.explain(model)}" if absence.is_absent(model) else _NOTHING


class Folding(Rewrite[FoldOptions]):
    """What `fold` does."""

    name = "fold"
    kind = "deploy"
    options_type = FoldOptions
    main_pass = "fold_moving_statistics"

    @functools.cached_property
    def trained(self) -> Source | None:
        """The trained model of Keras that the options name."""
        given = self.options.from_keras
        return None if given is None else reading.read_trained(given)

    def prepare(self, model: ir.Model) -> Sequence[str]:
        """Put statistics and weights that are given into `model`, converted on the way."""
        if self.options.statistics is not None:
            given = moving_statistics.load(self.options.statistics)
            moving_statistics.apply_to_form(given, recipes.to_form(model))
        if self.trained is None:
            return ()
        from syncbn_convert.keras.taken_weights import take_weights

        take_weights(model, self.trained)
        recipes.to_form(model)
        return (f"weights and statistics of {self.trained.name} taken",)

    def passes(self, model: ir.Model) -> Sequence[RewritePass]:
        """Return the passes for a model."""
        return recipes.folding(self.options, model)

    def check(self, model: ir.Model, records: Sequence[Record], *, modified: bool) -> Sequence[str]:
        """Refuse layers of which none can be folded; return a note where there are none.

        Raises:
            ConversionError: also where nothing was done and that is to be an error.
        """
        if any(record.action in ("folded", "switched off") for record in records):
            return ()
        if records:
            raise ConversionError(
                f"none of the {len(records)} nodes can be folded; '{records[0].node}': "
                f"{records[0].reason}"
            )
        if self.options.fail_if_unchanged and not modified:
            raise ConversionError(_nothing_in(model))
        return (_nothing_in(model),)

    def verify(self, original: Path, result: Path, options: VerifyOptions) -> verdicts.Verdict:
        """Compare a folded model with the inference formula in what it came from."""
        verdict = verdicts.verify_folded(self._reference(original, result), result, options)
        if self.trained is None:
            return verdict
        found = self.trained.compare(options, model_file.map_model(result))
        return verdict.worst(verdicts.Verdict(found.relative_error, found.tolerance))

    def _reference(self, original: Path, result: Path) -> Path:
        """Return what `result` has to equal: `original`, with the values that are given."""
        if self.trained is not None:
            model = self.trained.named_like(model_file.map_model(result))
        elif self.options.statistics is not None:
            model = model_file.map_model(original)
            self.prepare(model)
        else:
            return original
        path = result.with_name(f"source-{result.name}")
        model_file.write_model(model, path)
        return path
