"""`convert`: BatchNormalization to its synchronized training form."""

from __future__ import annotations

import dataclasses
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
    require_matches,
    to_file,
)
from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import absence, training_form
from syncbn_convert.options.rewrites import ConvertOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import WritingOptions
from syncbn_convert.passes import ConfigureBatchNorm, recipes
from syncbn_convert.reports import Record, RewriteReport
from syncbn_convert.rewriting import pipeline
from syncbn_convert.rewriting.contract import RewritePass
from syncbn_convert.verification import references, verdicts


def run(
    path: Path,
    options: ConvertOptions,
    writing: WritingOptions,
    verifying: Verifying,
    *,
    page: Path | None,
    show_stage: ShowStage,
) -> Result[RewriteReport]:
    """Do what the command does; errors are those of `convert_file`."""
    return Run(Conversion(options), verifying, show_stage).to_file(path, writing, page)


def convert(
    model: ModelLike, options: ConvertOptions = ConvertOptions(), **checks: Unpack[Checks]
) -> Model:
    """Return the synchronized training form of `model`; see `convert_with_report`."""
    return convert_with_report(model, options, **checks)[0]


def convert_with_report(
    model: ModelLike, options: ConvertOptions = ConvertOptions(), **checks: Unpack[Checks]
) -> tuple[Model, RewriteReport]:
    """Turn the BatchNormalization nodes of `model` into their synchronized training form.

    Args:
        model: What to convert; not changed.
        options: Which nodes, and how.
        **checks: See `Checks`.

    Returns:
        The training form in the type that came in, and what was done. `syncbn_convert.save` writes
        it with its `training_info`, which `onnx_ir.save` leaves out.

    Raises:
        ConversionError: if there is nothing that can be converted as asked.
        VerificationError: if the result is not what the runtime says it should be.
        ModelFileError: if `model` cannot be read or is malformed.
    """
    return in_memory(Conversion(options), model, checks)


def convert_file(
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions = ConvertOptions(),
    **given: Unpack[FileChecks],
) -> tuple[Path | None, RewriteReport]:
    """Convert a file into another, which appears whole and verified or not at all.

    Args:
        input: The model file.
        output: The file to write; None writes `<name>.sync.onnx` beside the input.
        options: Which nodes, and how.
        **given: See `FileChecks`.

    Returns:
        The path written (None for a dry run), and what was done.

    Raises:
        UsageError: if `output` exists or is the input and `force` is not given.
        SyncBNError: as `convert_with_report`; nothing is written then.
    """
    return to_file(Conversion(options), input, output, given)


class Conversion(Rewrite[ConvertOptions]):
    """What `convert` does."""

    name = "convert"
    kind = "sync"
    options_type = ConvertOptions
    main_pass = "convert_sync_batchnorm"

    def passes(self, model: ir.Model) -> Sequence[RewritePass]:
        """Return the passes for a model."""
        return recipes.converting(self.options, model)

    def check(self, model: ir.Model, records: Sequence[Record], *, modified: bool) -> Sequence[str]:
        """Refuse records that say that nothing was done, and patterns that match nothing."""
        del modified
        self._check_patterns(model, records)
        if not any(record.action in ("converted", "frozen") for record in records):
            raise ConversionError(
                f"none of the {len(records)} BatchNormalization nodes can be converted; "
                f"'{records[0].node}': {records[0].reason}"
            )
        return ()

    def verify(self, original: Path, result: Path, options: VerifyOptions) -> verdicts.Verdict:
        """Compare a form with its original, what was recognized in it first."""
        recognized = self._recognized(original, result)
        reference = self._reference(recognized or original, result)
        verdict = verdicts.verify_converted(reference, result, options)
        if recognized is None:
            return verdict
        same = verdicts.verify_recognized(original, recognized, options)
        return dataclasses.replace(same, outputs=()).worst(verdict)

    def _check_patterns(self, model: ir.Model, records: Sequence[Record]) -> None:
        options = self.options
        if not records:
            raise ConversionError(self._nothing_in(model))
        by_flag = {flag: getattr(options, flag) for flag in ("include", "exclude", "freeze")}
        by_flag["options"] = tuple(rule.pattern for rule in options.layers)
        require_matches(by_flag, records, "BatchNormalization")

    def _nothing_in(self, model: ir.Model) -> str:
        if training_form.nodes(model):
            return "the model is a training form already; fold it first to convert it anew"
        text = absence.explain(model)
        affine = any(node.op_type in ("Mul", "Div") for node in model.graph)
        if affine and self.options.recognize and not self.options.recognize_affine:
            text += "; --recognize-affine takes scale * x + bias behind weights for it, too"
        return text

    def _recognized(self, original: Path, result: Path) -> Path | None:
        """Write `original` with what is recognized in it; None where that is nothing."""
        if not self.options.recognize:
            return None
        model = model_file.map_model(original)
        done = pipeline.run(model, recipes.recognizing(self.options))
        records = done.records["recognize_batchnorm"]
        if not any(record.action == "recognized" for record in records):
            return None
        path = result.with_name(f"recognized-{result.name}")
        model_file.write_model(model, path)
        return path

    def _reference(self, original: Path, result: Path) -> Path:
        """Return what `result` has to equal: `original`, with the parameters that are given."""
        if not self.options.rules.given:
            return original
        model = model_file.map_model(original)
        selection = recipes.as_asked(ConfigureBatchNorm, self.options)
        references.take_parameters(model, model_file.map_model(result), selection)
        path = result.with_name(f"source-{result.name}")
        model_file.write_model(model, path)
        return path
