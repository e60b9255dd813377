"""The comparison of two models, as it runs in the child process."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.reports import OutputDifference, VerifyReport
from syncbn_convert.verification.differences import Difference, compare_values, summarize
from syncbn_convert.verification.evidence import (
    is_unproven,
    random_outputs,
    weigh,
    without_randomness,
)
from syncbn_convert.verification.feeds import overriding_arrays
from syncbn_convert.verification.interface import interface_difference
from syncbn_convert.verification.leaves import output_of
from syncbn_convert.verification.loadable import loadable
from syncbn_convert.verification.localize import first_differing_node
from syncbn_convert.verification.model import (
    ModelFile,
    Progress,
    load_model,
    load_reference,
    open_model,
)
from syncbn_convert.verification.noise import Noise, measure_noise
from syncbn_convert.verification.runners import Runner, RunnerError
from syncbn_convert.verification.runs import Run, collect_runs
from syncbn_convert.verification.tolerance import (
    NOISE_THAT_HIDES_ERRORS,
    TWIN_NOTE,
    Tolerance,
    scale_of,
    tolerance_for,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _References:
    """What the candidate is held against."""

    runs: list[Run]
    noises: list[Noise]
    tolerance: Tolerance
    notes: list[str]
    evaluator: bool
    random: dict[str, str]


def compare_files(
    reference: Path,
    candidate: Path,
    options: VerifyOptions,
    progress: Progress,
    *,
    outputs: Sequence[str] | None = None,
    twin: bool = True,
) -> Iterator[VerifyReport]:
    """Yield the report, and once more with the first differing node where outputs differ.

    The second report takes runs that can crash where the first did not.

    Args:
        reference: The model that is right.
        candidate: The model in question.
        options: How to compare.
        progress: Is told what is about to run.
        outputs: Names of the outputs to compare; all if None.
        twin: Whether a float64 twin may tell the reference's error.

    Raises:
        SyncBNError: The models cannot be compared.
    """
    originals = open_model(reference), open_model(candidate)
    different = interface_difference(originals[0].interface, originals[1].interface, outputs)
    if different:
        yield VerifyReport(
            equal=False,
            max_relative_error=0.0,
            tolerance=0.0,
            outputs=[],
            first_difference=f"interface: {different}",
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        loaded = [loadable(m, Path(folder) / f"loadable{n}") for n, m in enumerate(originals)]
        models, notes = without_randomness([model for model, _ in loaded], Path(folder))
        notes = list(dict.fromkeys([*(note for _, told in loaded for note in told), *notes]))
        for report in _compare(models, options, progress, outputs=outputs, twin=twin):
            yield dataclasses.replace(report, notes=[*notes, *report.notes])


def _compare(
    models: Sequence[ModelFile],
    options: VerifyOptions,
    progress: Progress,
    *,
    outputs: Sequence[str] | None,
    twin: bool,
) -> Iterator[VerifyReport]:
    reference, candidate = models
    names = [spec.name for spec in reference.interface.outputs] if outputs is None else [*outputs]
    references = _run_reference(reference, candidate, options, names, progress)
    runner = load_model(candidate, progress, evaluator=references.evaluator)
    progress(candidate.path, "running it")
    outputs_of_runs, refusal = _run_candidate(references.runs, runner)
    differences = _differences(references, outputs_of_runs)
    if references.tolerance.derived and _first_failing_run(references, differences):
        references = _with_noise(reference, candidate, references, progress, twin=twin)
        differences = _differences(references, outputs_of_runs)
    report = _report(differences, refusal, references)
    yield report
    differing = None if report.equal or refusal else _first_failing_run(references, differences)
    if differing is not None:
        progress(candidate.path, "looking for the first differing node")
        node = first_differing_node(
            reference,
            candidate,
            differing,
            references.tolerance,
            evaluator=references.evaluator,
        )
        if node is not None:
            told = str(report.first_difference)
            first = f"{node}; {told}" if "whole numbers" in told else node
            yield dataclasses.replace(report, first_difference=first)


def _run_reference(
    reference: ModelFile,
    candidate: ModelFile,
    options: VerifyOptions,
    names: list[str],
    progress: Progress,
) -> _References:
    runner, reason = load_reference(reference, candidate, progress)
    notes = (
        [f"compared on onnx's reference evaluator, not ONNX Runtime: {reason}"] if reason else []
    )
    progress(reference.path, "running it")
    runs = collect_runs(reference.interface, runner, options, names)
    random = random_outputs((reference, candidate), names)
    tensors = {name: output_of(name, names) for name in runs[0].outputs}
    random = {name: random[output] for name, output in tensors.items() if output in random}
    names = list(tensors)
    runs += _overriding_runs(reference, candidate, runner, runs[0], options.seed, notes)
    tolerance = tolerance_for(reference.model, rtol=options.rtol, atol=options.atol)
    return _References(
        runs=runs,
        noises=[dict.fromkeys(names, 0.0) for _ in runs],
        tolerance=tolerance,
        notes=notes,
        evaluator=bool(reason),
        random=random,
    )


def _with_noise(
    reference: ModelFile,
    candidate: ModelFile,
    references: _References,
    progress: Progress,
    *,
    twin: bool,
) -> _References:
    """Return the references with the reference's own error, which costs runs of its own."""
    runner, _ = load_reference(reference, candidate, progress)
    twin = twin and not references.evaluator
    noises, by_twin = measure_noise(reference, runner, references.runs, progress, twin=twin)
    notes = [TWIN_NOTE] if by_twin else []
    notes += _noise_notes(references.runs, noises, references.random)
    return dataclasses.replace(references, noises=noises, notes=[*references.notes, *notes])


def _overriding_runs(
    reference: ModelFile,
    candidate: ModelFile,
    runner: Runner,
    base: Run,
    seed: int,
    notes: list[str],
) -> list[Run]:
    others = {spec.name for spec in candidate.interface.overridable}
    names = [
        spec.name
        for spec in reference.interface.overridable
        if spec.name in others and _same_initializer(reference, candidate, spec.name)
    ]
    arrays = overriding_arrays(reference.model, names, seed)
    if not arrays:
        return []
    label = f"{base.feed.label}, overridden initializers"
    feed = dataclasses.replace(base.feed, label=label, arrays={**base.feed.arrays, **arrays})
    try:
        return [Run(feed, runner.run(feed.arrays, list(base.outputs)))]
    except RunnerError as error:
        notes.append(f"overridden initializers not compared: the reference refuses them ({error})")
        return []


def _same_initializer(reference: ModelFile, candidate: ModelFile, name: str) -> bool:
    first, second = (m.model.graph.initializers[name] for m in (reference, candidate))
    return first.dtype == second.dtype and first.shape == second.shape


def _noise_notes(runs: list[Run], noises: list[Noise], random: dict[str, str]) -> list[str]:
    notes = []
    known = {name: value for name, value in runs[0].outputs.items() if name not in random}
    for name, value in known.items():
        relative = min(
            noise[name] / scale_of(run.outputs[name])
            for run, noise in zip(runs, noises, strict=True)
        )
        if is_floating(value.dtype) and relative > NOISE_THAT_HIDES_ERRORS:
            notes.append(
                f"output '{name}': rounding errors alone move it by {relative:.1e} relative, so"
                " the comparison says little about it"
            )
        elif not is_floating(value.dtype) and any(noise[name] for noise in noises):
            notes.append(f"output '{name}': rounding errors alone change its integers")
    return notes


def _run_candidate(runs: Sequence[Run], runner: Runner) -> tuple[list[dict[str, Any]], str]:
    """Return the candidate's outputs of each run, and why it refuses one."""
    outputs = []
    for run in runs:
        try:
            outputs.append(runner.run(run.feed.arrays, list(run.outputs)))
        except RunnerError as error:
            return outputs, f"the candidate does not run on {run.feed.label}: {error}"
    return outputs, ""


def _differences(
    references: _References, outputs: Sequence[dict[str, Any]]
) -> list[dict[str, Difference]]:
    return [
        {
            name: compare_values(
                value, found[name], references.tolerance.allowed(value, noise[name])
            )
            for name, value in run.outputs.items()
        }
        for run, noise, found in zip(references.runs, references.noises, outputs, strict=False)
    ]


def _report(
    differences: list[dict[str, Difference]], refusal: str, references: _References
) -> VerifyReport:
    names = differences[0] if differences else []
    found = [summarize(name, [by_name[name] for by_name in differences]) for name in names]
    outputs, notes = weigh(
        found,
        references.runs,
        differences,
        references.random,
        derived=references.tolerance.derived,
    )
    flat = [
        difference
        for by_name in differences
        for name, difference in by_name.items()
        if name not in references.random
    ]
    nearest = max(flat, key=Difference.order, default=None)
    compared = [output for output in outputs if output.name not in references.random]
    failing = sorted((output for output in outputs if not output.equal), key=is_unproven)
    return VerifyReport(
        equal=not failing and not refusal,
        max_relative_error=max((output.max_relative_error for output in compared), default=0.0),
        tolerance=0.0 if nearest is None else nearest.tolerance,
        outputs=outputs,
        first_difference=refusal
        or (_describe(failing[0], references.runs[0]) if failing else None),
        runs=len(differences),
        notes=[*references.notes, *notes],
        unproven=[] if refusal else [out.name for out in outputs if is_unproven(out)],
    )


def _describe(output: OutputDifference, run: Run) -> str:
    dtype = run.outputs[output.name].dtype
    error = output.detail or f"{output.max_relative_error:.1e} relative"
    if not output.detail and dtype.kind in "iu":
        kind = "levels" if dtype.itemsize == 1 else "indices or counts"
        error = (
            f"its whole numbers ({dtype}, {kind}) differ by up to {output.max_absolute_error:g}, "
            "which only --atol allows"
        )
    return f"output '{output.name}': {error}"


def _first_failing_run(
    references: _References, differences: list[dict[str, Difference]]
) -> Run | None:
    for run, by_name in zip(references.runs, differences, strict=False):
        known = (d for name, d in by_name.items() if name not in references.random)
        if not all(difference.equal for difference in known):
            return run
    return None
