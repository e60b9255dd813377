"""One run of `convert`, `fold` or `fuse`: passes, checks, verification, report."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from syncbn_convert import passes
from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.form import statistics, training_form
from syncbn_convert.keras import sources
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions
from syncbn_convert.passes import recipes
from syncbn_convert.passes.fusion.affine import TRAINING_MODE
from syncbn_convert.reports import Record, RewriteReport
from syncbn_convert.rewriting import RewritePass, matches, pipeline
from syncbn_convert.verification import VerifyOptions, references, rewrites

if TYPE_CHECKING:
    from syncbn_convert.keras.models import Trained

Progress = Callable[[str], None]
RewriteOptions = ConvertOptions | FoldOptions | FuseOptions


@dataclasses.dataclass(frozen=True)
class _Command:
    """What one command does.

    Attributes:
        name: What it is called.
        main_pass: The pass whose records its report is made of.
        passes: Returns the passes for its options and a model.
        check: Refuses records that say that nothing was done.
        verify: Compares a result with what it came from.
    """

    name: str
    main_pass: str
    passes: Callable[[Any, ir.Model], Sequence[RewritePass]]
    check: Callable[[Any, list[Record]], None]
    verify: Callable[[Path, Path, VerifyOptions], rewrites.Verdict]


@dataclasses.dataclass(frozen=True)
class RewriteJob:
    """One run of a command."""

    options: RewriteOptions
    verify: bool
    verify_options: VerifyOptions
    progress: Progress
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def command(self) -> _Command:
        """What the options are of."""
        return _COMMANDS[type(self.options)]

    def imported(self, source: model_file.ModelLike) -> model_file.ModelLike:
        """Return a model of another framework as ONNX, compared with what it predicts there."""
        if not sources.is_foreign(source):
            return source
        with self.stage("read"):
            found = sources.read(source)
        if self.verify:
            with self.stage("compare"):
                self.notes.append(str(found.compare(self.verify_options)))
        return found.model

    @functools.cached_property
    def trained(self) -> Trained | None:
        """The trained model of Keras that the options name."""
        source = self.options.from_keras if isinstance(self.options, FoldOptions) else None
        if source is None:
            return None
        from syncbn_convert.keras.models import read_trained

        return read_trained(source)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside, and say that it begins."""
        self.progress(name)
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def rewrite(self, model: ir.Model) -> pipeline.PipelineResult:
        """Run the passes over `model`, in place."""
        with self.stage("rewrite"):
            self._take_values(model)
            chosen = self.command.passes(self.options, model)
            result = pipeline.run(model, chosen, self.options.pipeline)
            left = _skipped(result.records, _RECOGNIZE)
            self.command.check(self.options, [*left, *result.records[self.command.main_pass]])
        self.timings.update(result.timings)
        return result

    def check(self, model: ir.Model) -> None:
        """Run ONNX's checker."""
        with self.stage("check"):
            model_file.checked(model)

    def verify_file(self, original: Path, result: Path) -> rewrites.Verdict | None:
        """Run a result against what it came from, if asked to."""
        if not self.verify:
            return None
        with self.stage("verify"):
            recognized = self._recognized(original, result)
            reference = self._reference(recognized or original, result)
            verdict = self.command.verify(reference, result, self.verify_options)
            if self.trained is not None:
                found = self.trained.compare(model_file.map_model(result), self.verify_options)
                verdict = verdict.worst(rewrites.Verdict(found.relative_error, found.tolerance))
            if recognized is not None:
                same = rewrites.verify_recognized(original, recognized, self.verify_options)
                verdict = dataclasses.replace(same, outputs=()).worst(verdict)
            return verdict

    def report(
        self,
        model: ir.Model,
        result: pipeline.PipelineResult,
        verdict: rewrites.Verdict | None,
        seconds: float,
    ) -> RewriteReport:
        """Say what was done."""
        records = _skipped(result.records, "canonicalize_batchnorm", _RECOGNIZE)
        records += _with_changes(result.records, self.command.main_pass)
        return RewriteReport(
            command=self.command.name,
            found=len(records),
            converted=sum(record.action in _DONE for record in records),
            records=records,
            all_reduces=len(training_form.nodes(model)),
            verified=verdict is not None,
            max_relative_error=verdict.max_relative_error if verdict else None,
            tolerance=verdict.tolerance if verdict else None,
            seconds=seconds,
            timings=self.timings,
            notes=[*self.notes, *result.notes, *(verdict.notes if verdict else ())],
            outputs=list(verdict.outputs) if verdict else [],
        )

    def _recognized(self, original: Path, result: Path) -> Path | None:
        """Write `original` with what is recognized in it; None where that is nothing."""
        options = self.options
        if not isinstance(options, ConvertOptions) or not options.recognize:
            return None
        model = model_file.map_model(original)
        done = pipeline.run(model, recipes.recognizing(options))
        if not any(record.action == "recognized" for record in done.records[_RECOGNIZE]):
            return None
        path = result.with_name(f"recognized-{result.name}")
        model_file.write_model(model, path)
        return path

    def _reference(self, original: Path, result: Path) -> Path:
        """Return what `result` has to equal: `original`, with the parameters that are given."""
        options = self.options
        configured = isinstance(options, ConvertOptions) and options.rules.given
        if _given_statistics(options) is None and not configured and self.trained is None:
            return original
        if self.trained is not None:
            model = self.trained.named_like(model_file.map_model(result))
        else:
            model = model_file.map_model(original)
            self._take_values(model)
        if isinstance(options, ConvertOptions):
            selection = passes.ConfigureBatchNorm(**recipes.selection(options))
            references.take_parameters(model, model_file.map_model(result), selection)
        path = result.with_name(f"source-{result.name}")
        model_file.write_model(model, path)
        return path

    def _take_values(self, model: ir.Model) -> None:
        """Put the values that are given into `model`, converted on the way, in place."""
        path = _given_statistics(self.options)
        if path is None and self.trained is None:
            return
        if path is not None:
            statistics.apply_to_form(statistics.load(path), recipes.to_form(model))
        if self.trained is not None:
            from syncbn_convert.keras.weights import take_weights

            take_weights(model, self.trained)
            self.notes.append(f"weights and statistics of {self.trained.name} taken")
            recipes.to_form(model)


_FUSE = "fuse_batchnorm"
_RECOGNIZE = "recognize_batchnorm"
_CHANGING = ("recognized", "configured", "regularized", "constrained", "fused", "kept")
_DONE = ("converted", "folded", "fused")


def silent(stage: str) -> None:
    """Show nothing."""
    del stage


def _skipped(records: dict[str, list[Record]], *names: str) -> list[Record]:
    """Return the records of what passes left alone."""
    found = (record for name in names for record in records.get(name, ()))
    return [record for record in found if record.action == "skipped"]


def _with_changes(records: dict[str, list[Record]], main: str) -> list[Record]:
    """Return the records of the main pass, with what other passes did to the same nodes."""
    changes: dict[tuple[str, str], list[str]] = {}
    for name, others in records.items():
        for record in others if name != main else ():
            if record.action in _CHANGING:
                text = record.reason if name != _FUSE else f"{record.action} {record.reason}"
                changes.setdefault((record.node, record.location), []).append(text)
    return [
        dataclasses.replace(record, detail={**record.detail, "changes": found})
        if (found := changes.get((record.node, record.location)))
        else record
        for record in records[main]
    ]


def _given_statistics(options: RewriteOptions) -> Path | None:
    return options.statistics if isinstance(options, FoldOptions) else None


def _check_folded(options: FoldOptions, records: list[Record]) -> None:
    del options
    if not records:
        raise ConversionError(
            "nothing to fold: the model holds no SyncBatchNormalization and no "
            "BatchNormalization in training mode; it is in inference form already"
        )
    if not any(record.action == "folded" for record in records):
        raise ConversionError(
            f"none of the {len(records)} nodes can be folded; '{records[0].node}': "
            f"{records[0].reason}"
        )


def _check_fused(options: FuseOptions, records: list[Record]) -> None:
    del options
    if not records:
        raise ConversionError(
            "nothing to fuse: the model holds no BatchNormalization and no affine map behind "
            "weights; fold a training form first, or see 'syncbn-convert inspect MODEL' for what "
            "it holds"
        )
    if all(record.reason == TRAINING_MODE for record in records):
        raise ConversionError(
            f"none of the {len(records)} BatchNormalization nodes can be fused, as all are in "
            "training mode; fold the model first, or use 'syncbn-convert fold --fuse'"
        )


def _check_patterns(options: ConvertOptions, records: list[Record]) -> None:
    if not records:
        cure = "fold a training form first, or see 'syncbn-convert inspect MODEL' for what it holds"
        if options.recognize and not options.recognize_affine:
            cure += "; --recognize-affine takes scale * x + bias behind weights for it, too"
        raise ConversionError(f"{recipes.NO_BATCHNORM}; {cure}")
    by_flag = {flag: getattr(options, flag) for flag in ("include", "exclude", "freeze")}
    by_flag["options"] = tuple(rule.pattern for rule in options.layers)
    for flag, patterns in by_flag.items():
        for pattern in patterns:
            if not any(matches((pattern,), record.node) for record in records):
                raise ConversionError(
                    f"--{flag} '{pattern}' matches no BatchNormalization; the first of "
                    f"{len(records)} is named '{records[0].node}'"
                )


def _check_converted(options: ConvertOptions, records: list[Record]) -> None:
    _check_patterns(options, records)
    if not any(record.action in ("converted", "frozen") for record in records):
        raise ConversionError(
            f"none of the {len(records)} BatchNormalization nodes can be converted; "
            f"'{records[0].node}': {records[0].reason}"
        )


_COMMANDS: dict[type, _Command] = {
    ConvertOptions: _Command(
        "convert",
        "convert_sync_batchnorm",
        recipes.converting,
        _check_converted,
        rewrites.verify_converted,
    ),
    FoldOptions: _Command(
        "fold", "fold_moving_statistics", recipes.folding, _check_folded, rewrites.verify_folded
    ),
    FuseOptions: _Command(
        "fuse", _FUSE, recipes.fusing, _check_fused, rewrites.verify_same_function
    ),
}
