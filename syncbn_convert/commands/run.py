"""One run of a rewrite: read, rewrite, write, check, verify, report."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypedDict, TypeVar

import onnx_ir as ir

from syncbn_convert.errors import ConversionError, UnknownOperatorError, UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import Model, ModelLike
from syncbn_convert.form import batchnorm, sick_statistics, training_form
from syncbn_convert.graph import graphs, random_nodes
from syncbn_convert.keras import reading
from syncbn_convert.keras.reading import Source
from syncbn_convert.options.patterns import matches
from syncbn_convert.options.rewrites import ConvertOptions, FoldOptions, FuseOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import WritingOptions
from syncbn_convert.page.writer import PageWriter
from syncbn_convert.reports import NOT_RUN, Record, Report, RewriteReport
from syncbn_convert.rewriting import pipeline
from syncbn_convert.rewriting.contract import RewritePass
from syncbn_convert.verification import launcher, verdicts

RewriteOptions = ConvertOptions | FoldOptions | FuseOptions
Options = TypeVar("Options", bound=RewriteOptions)
ReportT = TypeVar("ReportT", bound=Report, covariant=True)
ShowStage = Callable[[str], None]

_CHANGING = ("recognized", "configured", "regularized", "constrained", "fused", "kept")
_DONE = ("converted", "folded", "fused")
_FUSING = "fuse_batchnorm"


def silent(stage: str) -> None:
    """Show nothing."""
    del stage


class Checks(TypedDict, total=False):
    """How a result is checked, and who is told; all may be left out.

    Attributes:
        verify: Whether to run the result on ONNX Runtime against its original; by default it is.
        verify_options: Feeds and tolerances of that.
        progress: Called with the name of each stage as it begins.
    """

    verify: bool
    verify_options: VerifyOptions
    progress: ShowStage | None


class FileChecks(Checks, total=False):
    """How a result is checked and written; all may be left out.

    Attributes:
        force: Whether the output may exist, or be the input.
        dry_run: Whether to write nothing.
        save_as_external_data: Whether to put weights into a file of their own.
    """

    force: bool
    dry_run: bool
    save_as_external_data: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Generic[ReportT]):
    """What a command leaves behind.

    Attributes:
        report: What was done.
        files: What was read and written by role, such as `input` and `output`; None stands for a
            file that was not written.
    """

    report: ReportT
    files: Mapping[str, Path | None] = dataclasses.field(default_factory=dict)

    @property
    def output(self) -> Path | None:
        """The file written; None if there is none."""
        return self.files.get("output")

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` writes."""
        files = {role: None if path is None else str(path) for role, path in self.files.items()}
        return self.report.to_json(files)


class Rewrite(abc.ABC, Generic[Options]):
    """What one command does to a model.

    Attributes:
        name: What it is called.
        kind: What its result is called in file names.
        main_pass: The pass whose records its report is made of.
        options_type: What its options are.

    Raises:
        UsageError: if the options are of another type.
    """

    name: ClassVar[str]
    kind: ClassVar[staging.Kind]
    main_pass: ClassVar[str]
    options_type: ClassVar[type[RewriteOptions]]

    def __init__(self, options: Options) -> None:
        if not isinstance(options, self.options_type):
            raise UsageError(
                f"options must be {self.options_type.__name__}, not {type(options).__name__}"
            )
        self.options = options

    def prepare(self, model: ir.Model) -> Sequence[str]:
        """Put what the options give into `model`, in place; return notes about it."""
        del model
        return ()

    @abc.abstractmethod
    def passes(self, model: ir.Model) -> Sequence[RewritePass]:
        """Return the passes for a model."""

    @abc.abstractmethod
    def check(self, model: ir.Model, records: Sequence[Record], *, modified: bool) -> Sequence[str]:
        """Refuse what records say that was or was not done; return notes about it."""

    @abc.abstractmethod
    def verify(self, original: Path, result: Path, options: VerifyOptions) -> verdicts.Verdict:
        """Run a result, in a folder where files may be added, against what it came from."""


class Run:
    """One run of a rewrite, and how long its stages take."""

    def __init__(
        self,
        rewrite: Rewrite[Any],
        verifying: Verifying,
        show_stage: ShowStage | None,
    ) -> None:
        self._rewrite = rewrite
        self._verifying = verifying
        self._show_stage = show_stage or silent
        self._timings: dict[str, float] = {}
        self._notes: list[str] = []
        self._start = time.perf_counter()

    def in_memory(self, argument: ModelLike) -> tuple[Model, RewriteReport]:
        """Rewrite a model and return it in the type that came in."""
        self._prepare()
        source = self._read(argument, mapped=False)
        model = source.model
        with tempfile.TemporaryDirectory() as folder:
            original = source.in_file(Path(folder)) if self._verifying.verify else Path()
            done = self._run_passes(model)
            with self._stage("check"):
                model_file.checked(model)
            staged = Path(folder) / "result.onnx"
            if self._verifying.verify:
                model_file.write_model(model, staged)
            verdict = self._compare(original, staged)
        return source.like(model), self._report(model, done, verdict)

    def to_file(
        self, path: Path, writing: WritingOptions, page: Path | None
    ) -> Result[RewriteReport]:
        """Rewrite a file into another, which appears whole and verified or not at all."""
        pages = PageWriter(page)
        if writing.dry_run:
            result = self._dry_run(path, pages)
        else:
            output = writing.output or staging.default_output(path, self._rewrite.kind)
            self._prepare()
            result = self._write(path, output, writing, pages)
        pages.write(result.report, result.output)
        return result

    def _write(
        self, path: Path, output: Path, writing: WritingOptions, pages: PageWriter
    ) -> Result[RewriteReport]:
        with (
            staging.stage_output(output, inputs=[path], force=writing.force) as staged,
            tempfile.TemporaryDirectory() as folder,
        ):
            source = self._read(path)
            model = source.model
            pages.take(model, path)
            original = source.in_file(Path(folder))
            done = self._run_passes(model)
            with self._stage("write"):
                model_file.write_model(
                    model,
                    staged.path,
                    save_as_external_data=writing.save_as_external_data,
                    data=staged.data,
                )
            with self._stage("check"), staged.flushed_meanwhile():
                model_file.check_file(staged.path)
            verdict = self._compare(original, staged.path)
            staged.commit()
        report = self._report(model, done, verdict)
        return Result(report=report, files={"input": path, "output": output})

    def _prepare(self) -> None:
        if self._verifying.verify:
            launcher.prepare()

    def _dry_run(self, path: Path, pages: PageWriter) -> Result[RewriteReport]:
        model = self._read(path, compares=False).model
        pages.take(model, path)
        done = self._run_passes(model)
        with self._stage("check"):
            model_file.checked(model)
        report = self._report(model, done, None)
        return Result(report=report, files={"input": path, "output": None})

    def _read(self, argument: ModelLike, *, mapped: bool = True, compares: bool = True) -> Source:
        with self._stage("read"):
            source = reading.read(argument, mapped=mapped)
        if source.framework is not None and self._verifying.verify and compares:
            with self._stage("compare"):
                self._notes.append(str(source.compare(self._verifying)))
        return source

    def _run_passes(self, model: ir.Model) -> pipeline.PipelineResult:
        rewrite = self._rewrite
        with self._stage("rewrite"):
            self._notes += model_file.notes_of(model)
            self._notes += rewrite.prepare(model)
            if rewrite.name != "fold":
                self._notes += batchnorm.notes_on_lost_modes(model)
            self._notes += sick_statistics.notes(model, initial=rewrite.name != "fuse")
            result = pipeline.run(model, rewrite.passes(model), rewrite.options.pipeline)
            left = _skipped(result.records, "recognize_batchnorm")
            main = result.records[rewrite.main_pass]
            records = [*left, *main, *_silenced(result.records)]
            self._notes += rewrite.check(model, records, modified=result.modified)
        self._timings.update(result.timings)
        return result

    def _compare(self, original: Path, result: Path) -> verdicts.Verdict | None:
        if not self._verifying.verify:
            return None
        with self._stage("verify"):
            try:
                return self._rewrite.verify(original, result, self._verifying)
            except UnknownOperatorError as error:
                cause = str(error).partition(": ")[2].partition(";")[0]
                self._notes.append(f"{NOT_RUN}{cause}; only onnx's checker has seen the result")
                return None

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._show_stage(name)
        start = time.perf_counter()
        yield
        self._timings[name] = self._timings.get(name, 0.0) + time.perf_counter() - start

    def _report(
        self, model: ir.Model, result: pipeline.PipelineResult, verdict: verdicts.Verdict | None
    ) -> RewriteReport:
        records = _skipped(result.records, "canonicalize_batchnorm", "recognize_batchnorm")
        shown = self._rewrite.main_pass if result.records[self._rewrite.main_pass] else _FUSING
        records += _with_changes(result.records, shown)
        return RewriteReport(
            command=self._rewrite.name,
            found=len(records),
            converted=sum(record.action in _DONE for record in records),
            records=[*records, *_silenced(result.records)],
            all_reduces=len(training_form.nodes(model)),
            verified=verdict is not None,
            max_relative_error=verdict.max_relative_error if verdict else None,
            tolerance=verdict.tolerance if verdict else None,
            seconds=time.perf_counter() - self._start,
            timings=self._timings,
            notes=_once(
                *self._notes,
                *result.notes,
                *random_nodes.note(model),
                *(verdict.notes if verdict else ()),
            ),
            outputs=list(verdict.outputs) if verdict else [],
        )


def in_memory(
    rewrite: Rewrite[Any], model: ModelLike, checks: Checks
) -> tuple[Model, RewriteReport]:
    """Rewrite a model, which is not changed; return the result in the type that came in."""
    return Run(rewrite, _verifying(checks), checks.get("progress")).in_memory(model)


def to_file(
    rewrite: Rewrite[Any],
    input: str | os.PathLike[str],  # noqa: A002
    output: str | os.PathLike[str] | None,
    given: FileChecks,
) -> tuple[Path | None, RewriteReport]:
    """Rewrite a file into another; return its path (None for a dry run), and what was done."""
    writing = WritingOptions(
        output=None if output is None else Path(output),
        force=given.get("force", False),
        dry_run=given.get("dry_run", False),
        save_as_external_data=given.get("save_as_external_data", False),
    )
    run = Run(rewrite, _verifying(given), given.get("progress"))
    result = run.to_file(Path(input), writing, None)
    return result.output, result.report


def check_rise(
    source: Source, form: ir.Model, verifying: Verifying, *, opset: int = 0
) -> tuple[str, ...]:
    """Compare a training form with the ONNX model that it came from, if its opset had to rise.

    Args:
        source: What was read; a model of another framework has the opset that is wanted.
        form: What it became.
        verifying: Whether and how to compare.
        opset: That of a graph made of the form, if it is higher.

    Returns:
        Notes about what could not be compared.

    Raises:
        VerificationError: if they differ.
    """
    if not verifying.verify or not source.rises_to(max(opset, graphs.opset_version(form))):
        return ()
    with tempfile.TemporaryDirectory() as folder:
        original = source.original_file(Path(folder))
        assert original is not None
        verdict = verdicts.verify_rise(original, form, Path(folder), verifying, opset=opset)
    return verdict.notes if verdict else ()


def require_matches(
    by_flag: Mapping[str, Sequence[str]], records: Sequence[Record], what: str
) -> None:
    """Refuse patterns that match no record.

    Args:
        by_flag: Regular expressions by the flag that they were given for.
        records: What they have to match.
        what: What messages call a record.

    Raises:
        ConversionError: naming the first that matches none.
    """
    for flag, patterns in by_flag.items():
        for pattern in patterns:
            if not any(matches((pattern,), *record.names) for record in records):
                raise ConversionError(
                    f"--{flag} '{pattern}' matches no {what}; the first of {len(records)} is "
                    f"named {' or '.join(map(repr, records[0].names))}"
                )


def _verifying(checks: Checks) -> Verifying:
    return Verifying.given(
        checks.get("verify", True), checks.get("verify_options", VerifyOptions())
    )


def _once(*notes: str) -> list[str]:
    return list(dict.fromkeys(notes))


def _skipped(records: Mapping[str, list[Record]], *names: str) -> list[Record]:
    """Return the records of what passes left alone."""
    found = (record for name in names for record in records.get(name, ()))
    return [record for record in found if record.action == "skipped"]


def _silenced(records: Mapping[str, list[Record]]) -> list[Record]:
    """Return the records of what drew random numbers and does no more."""
    found = records.get("switch_randomness_off", ())
    return [record for record in found if record.action == "switched off"]


def _with_changes(records: Mapping[str, list[Record]], main: str) -> list[Record]:
    """Return the records of the main pass, with what other passes did to the same nodes."""
    changes: dict[tuple[str, str], list[str]] = {}
    for name, others in records.items():
        for record in others if name != main else ():
            if record.action in _CHANGING:
                text = record.reason
                if name == _FUSING:
                    text = f"{record.action} {text}"
                changes.setdefault((record.node, record.location), []).append(text)
    return [
        dataclasses.replace(record, detail={**record.detail, "changes": found})
        if (found := changes.get((record.node, record.location)))
        else record
        for record in records.get(main, ())
    ]
