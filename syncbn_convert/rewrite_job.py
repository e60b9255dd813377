"""One run of `convert` or `fold`: passes, checks, verification, report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from syncbn_convert import (
    graphs,
    model_file,
    pipeline,
    statistics,
    training_form,
)
from syncbn_convert.batchnorm import FIRST_OPSET_THAT_RUNS
from syncbn_convert.errors import ConversionError
from syncbn_convert.options import ConvertOptions, FoldOptions
from syncbn_convert.passes import (
    CanonicalizeBatchNorm,
    ConfigureBatchNorm,
    ConstrainParameters,
    ConvertSyncBatchNorm,
    FoldMovingStatistics,
    RegularizeParameters,
)
from syncbn_convert.reports import Record, RewriteReport
from syncbn_convert.rewriting import RewritePass, matches
from syncbn_convert.verification import VerifyOptions, references, rewrites

Progress = Callable[[str], None]
Command = Literal["convert", "fold"]


@dataclasses.dataclass(frozen=True)
class RewriteJob:
    """One run of `convert` or `fold`."""

    command: Command
    options: ConvertOptions | FoldOptions
    verify: bool
    verify_options: VerifyOptions
    progress: Progress
    timings: dict[str, float] = dataclasses.field(default_factory=dict)

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
            _replace_statistics(model, self.options)
            result = pipeline.run(model, self._passes(model), self.options.pipeline)
            self._check_records(result.records)
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
        check = rewrites.verify_converted if self.command == "convert" else rewrites.verify_folded
        with self.stage("verify"):
            return check(self._reference(original, result), result, self.verify_options)

    def report(
        self,
        model: ir.Model,
        result: pipeline.PipelineResult,
        verdict: rewrites.Verdict | None,
        seconds: float,
    ) -> RewriteReport:
        """Say what was done."""
        earlier = result.records.get("canonicalize_batchnorm", [])
        records = [record for record in earlier if record.action == "skipped"]
        records += _with_changes(result.records, _MAIN_PASS[self.command])
        return RewriteReport(
            command=self.command,
            found=len(records),
            converted=sum(record.action in ("converted", "folded") for record in records),
            records=records,
            all_reduces=len(training_form.nodes(model)),
            verified=verdict is not None,
            max_relative_error=verdict.max_relative_error if verdict else None,
            tolerance=verdict.tolerance if verdict else None,
            seconds=seconds,
            timings=self.timings,
            notes=[*result.notes, *(verdict.notes if verdict else ())],
        )

    def _reference(self, original: Path, result: Path) -> Path:
        """Return what `result` has to equal: `original`, with the parameters that are given."""
        configured = isinstance(self.options, ConvertOptions) and self.options.rules.given
        if _given_statistics(self.options) is None and not configured:
            return original
        model = model_file.load_model(original)
        _replace_statistics(model, self.options)
        if configured:
            references.take_parameters(model, model_file.load_model(result))
        path = result.with_name(f"source-{result.name}")
        model_file.write_model(model, path)
        return path

    def _passes(self, model: ir.Model) -> Sequence[RewritePass]:
        if isinstance(self.options, ConvertOptions):
            return _conversion(self.options)
        rises = self.options.opset or graphs.opset_version(model) < FIRST_OPSET_THAT_RUNS
        canonical = (CanonicalizeBatchNorm(opset=self.options.opset),) if rises else ()
        return (*canonical, FoldMovingStatistics(keep_batchnorm=self.options.keep_batchnorm))

    def _check_records(self, records: dict[str, list[Record]]) -> None:
        own = records[_MAIN_PASS[self.command]]
        if isinstance(self.options, FoldOptions):
            _check_folded(own)
        else:
            _check_patterns(self.options, own)
            _check_converted(own)


_CHANGING = ("configured", "regularized", "constrained")
_MAIN_PASS = {"convert": "convert_sync_batchnorm", "fold": "fold_moving_statistics"}


def silent(stage: str) -> None:
    """Show nothing."""
    del stage


def _conversion(options: ConvertOptions) -> Sequence[RewritePass]:
    selection: dict[str, Any] = {
        "include": options.include,
        "exclude": options.exclude,
        "freeze": options.freeze,
        "rules": options.rules,
    }
    canonical, converting = (
        CanonicalizeBatchNorm(opset=options.opset),
        ConvertSyncBatchNorm(**selection),
    )
    if not options.rules.given:
        return canonical, converting
    return (
        canonical,
        ConfigureBatchNorm(**selection),
        RegularizeParameters(**selection),
        ConstrainParameters(**selection),
        converting,
    )


def _with_changes(records: dict[str, list[Record]], main: str) -> list[Record]:
    """Return the records of the main pass, with what other passes did to the same nodes."""
    changes: dict[tuple[str, str], list[str]] = {}
    for name, others in records.items():
        for record in others if name != main else ():
            if record.action in _CHANGING:
                changes.setdefault((record.node, record.location), []).append(record.reason)
    return [
        dataclasses.replace(record, detail={**record.detail, "changes": found})
        if (found := changes.get((record.node, record.location)))
        else record
        for record in records[main]
    ]


def _given_statistics(options: ConvertOptions | FoldOptions) -> Path | None:
    return options.statistics if isinstance(options, FoldOptions) else None


def _replace_statistics(model: ir.Model, options: ConvertOptions | FoldOptions) -> None:
    """Put the statistics that are given into `model`, converted on the way, in place."""
    path = _given_statistics(options)
    if path is not None:
        from syncbn_convert.calibrate_api import to_form

        statistics.apply_to_form(statistics.load(path), to_form(model))


def _check_folded(records: list[Record]) -> None:
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


def _check_patterns(options: ConvertOptions, records: list[Record]) -> None:
    if not records:
        raise ConversionError(
            "the model holds no BatchNormalization; see 'syncbn-convert inspect MODEL' for what "
            "it holds"
        )
    by_flag = {flag: getattr(options, flag) for flag in ("include", "exclude", "freeze")}
    by_flag["options"] = tuple(rule.pattern for rule in options.layers)
    for flag, patterns in by_flag.items():
        for pattern in patterns:
            if not any(matches((pattern,), record.node) for record in records):
                raise ConversionError(
                    f"--{flag} '{pattern}' matches no BatchNormalization; the first of "
                    f"{len(records)} is named '{records[0].node}'"
                )


def _check_converted(records: list[Record]) -> None:
    if not any(record.action in ("converted", "frozen") for record in records):
        raise ConversionError(
            f"none of the {len(records)} BatchNormalization nodes can be converted; "
            f"'{records[0].node}': {records[0].reason}"
        )
