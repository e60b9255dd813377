"""What `convert` and `fold` verify of their results, beside the staged file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from syncbn_convert.errors import VerificationError
from syncbn_convert.files import model_file
from syncbn_convert.form import provenance, sick_statistics, training_form
from syncbn_convert.graph import graphs
from syncbn_convert.graph.value_types import infer_shapes_of
from syncbn_convert.options.rewrites import ConvertOptions
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.passes import recipes
from syncbn_convert.reports import OutputDifference, VerifyReport
from syncbn_convert.rewriting import pipeline
from syncbn_convert.verification import references
from syncbn_convert.verification.form_audit import (
    NodeError,
    audit_model,
    empty_nodes,
    read_figures,
)
from syncbn_convert.verification.launcher import (
    run_audits,
    verify_files,
)
from syncbn_convert.verification.references import inference_reference, make_runnable
from syncbn_convert.verification.replica_audit import judge, replicas_to_audit
from syncbn_convert.verification.tolerance import TWIN_NOTE


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The error that came nearest to its tolerance.

    Attributes:
        max_relative_error: That error, relative to the largest magnitude of the output.
        tolerance: Its tolerance.
        notes: What could not be compared, and why.
        outputs: How far each output is from the original.
    """

    max_relative_error: float
    tolerance: float
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputDifference, ...] = ()

    def worst(self, other: Verdict) -> Verdict:
        """Return the worse of two verdicts, with the notes of both."""
        nearer = max(self, other, key=lambda verdict: verdict._share())
        return dataclasses.replace(
            nearer,
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
            outputs=(*self.outputs, *other.outputs),
        )

    def _share(self) -> float:
        return self.max_relative_error / self.tolerance if self.tolerance else 0.0


def verify_converted(original: Path, converted: Path, options: VerifyOptions) -> Verdict:
    """Check a training form on one and on two replicas.

    1. The form folded, against the original in inference mode: names, opset, parameters.
    2. Each node against ONNX's training-mode kernel on its own input (see `form_audit`).
    3. Each node on two replicas against float64 sums over both (see `replica_audit`).

    Args:
        original: The model file that was converted.
        converted: The training form, in a folder where files may be added.
        options: Feeds and tolerances.

    Returns:
        The error nearest to its tolerance.

    Raises:
        VerificationError: naming the first node or output that differs.
    """
    form = _load_form(converted)
    if training_form.reason_against(form):  # folding goes by names: what runs is judged first
        _verify_nodes(form, converted, options)
    folded = graphs.clone(form)
    recipes.to_inference(folded)
    verdict = _compare_with_inference(original, _write_beside(folded, converted, "folded"), options)
    return verdict.worst(_verify_nodes(form, converted, options))


def verify_rise(
    original: Path, form: ir.Model, folder: Path, options: VerifyOptions, *, opset: int = 0
) -> Verdict | None:
    """Check a training form whose opset is not its original's: both infer the same.

    Where normalization in elementwise operators was recognized, the original with it stands
    between: equal to the original as it is, and to the form in inference.

    Args:
        original: The model file that was converted.
        form: The training form; not changed.
        folder: Where files may be added.
        options: Feeds and tolerances.
        opset: That of a graph made of the form, if it is higher.

    Returns:
        The error nearest to its tolerance; None where no opset was raised.

    Raises:
        VerificationError: naming the first node or output that differs.
    """
    risen = model_file.as_model(form)
    opset = max(opset, graphs.opset_version(form))
    if graphs.opset_version(model_file.map_model(original)) >= opset:
        return None
    recipes.to_inference(risen)
    references.raise_to(risen, opset)
    path = folder / "risen.onnx"
    model_file.write_model(risen, path)
    recognized = model_file.map_model(original)
    done = pipeline.run(recognized, recipes.recognizing(ConvertOptions()))
    if not any(record.action == "recognized" for record in done.records["recognize_batchnorm"]):
        return _compare_with_inference(original, path, options)
    reference = folder / "recognized.onnx"
    model_file.write_model(recognized, reference)
    same = verify_recognized(original, reference, options)
    return same.worst(_compare_with_inference(reference, path, options))


def verify_form(converted: Path, options: VerifyOptions) -> Verdict:
    """Check the nodes of a training form, alone and on two replicas with different data.

    Raises:
        VerificationError: naming the first node that differs.
    """
    return _verify_nodes(_load_form(converted), converted, options)


def _verify_nodes(form: ir.Model, converted: Path, options: VerifyOptions) -> Verdict:
    if not training_form.nodes(form):
        return Verdict(0.0, 0.0)
    sick = sick_statistics.not_finite(form)
    if sick:
        raise VerificationError(
            f"{sick}, so what follows from it cannot be compared; repair the statistic, or pass "
            "--no-verify"
        )
    path = _write_beside(audit_model(form), converted, "audit")
    apart = provenance.unsynchronized(form)
    container = _fed_container(form)
    alone_only = apart or container or _has_no_channels(form)
    runs, replicas = run_audits(path, None if alone_only else converted, options)
    errors = read_figures(form, runs)
    alone = _worst(errors, "ONNX's training-mode BatchNormalization", options)
    empty = empty_nodes(form, runs)
    alone = dataclasses.replace(alone, notes=_empty_notes(empty))
    if len(empty) == len(training_form.nodes(form)):
        return alone
    if apart:
        return _noted(alone, "not run on replicas: some layers are not synchronized")
    if container:
        return _noted(alone, f"not run on replicas: input '{container}' takes no tensor")
    if not replicas:
        return _noted(alone, _why_not_on_replicas(form))
    together = judge(form, replicas)
    return alone.worst(_worst(together, "one normalization over its replicas", options))


def _has_no_channels(form: ir.Model) -> bool:
    parameters = (node.inputs[3] for node in training_form.nodes(form))
    return any(value is not None and value.shape == [0] for value in parameters)


def _fed_container(form: ir.Model) -> str:
    """Return the first input that takes a sequence or a map, which replicas cannot be fed."""
    inputs = (value for value in form.graph.inputs if not value.is_initializer())
    kinds = (ir.TensorType, ir.OptionalType)
    return next((str(value.name) for value in inputs if not isinstance(value.type, kinds)), "")


def _noted(verdict: Verdict, note: str) -> Verdict:
    return dataclasses.replace(verdict, notes=(*verdict.notes, note))


def _empty_notes(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    more = f" and {len(names) - 1} more nodes get" if len(names) > 1 else " gets"
    return (f"node '{names[0]}'{more} no samples on what was tried, so nothing was compared there",)


def _why_not_on_replicas(form: ir.Model) -> str:
    sizes = [node.attributes.get_int("group_size", 0) for node in training_form.nodes(form)]
    cause = "ONNX Runtime does not" if replicas_to_audit(sizes) else "its groups are too large"
    return f"not run on replicas: {cause}"


def verify_folded(original: Path, folded: Path, options: VerifyOptions) -> Verdict:
    """Check a folded model against the inference formula in the model that it came from.

    Raises:
        VerificationError: naming the first node or output that differs.
    """
    return _compare_with_inference(original, folded, options)


def verify_same_function(original: Path, rewritten: Path, options: VerifyOptions) -> Verdict:
    """Check that a rewritten model computes what its original does.

    Raises:
        VerificationError: naming the first output that differs.
    """
    reference = model_file.map_model(original)
    notes = make_runnable(reference)
    if not notes:
        return _verdict(verify_files(original, rewritten, options))
    candidate = model_file.map_model(rewritten)
    references.raise_to(candidate, graphs.opset_version(reference))
    paths = [rewritten.with_name(f"{kind}-{rewritten.name}") for kind in ("reference", "runnable")]
    for model, path in zip((reference, candidate), paths, strict=True):
        model_file.write_model(model, path)
    verdict = _verdict(verify_files(paths[0], paths[1], options))
    return dataclasses.replace(verdict, notes=(*notes, *verdict.notes))


def verify_recognized(original: Path, recognized: Path, options: VerifyOptions) -> Verdict:
    """Check that a model with recognized BatchNormalization computes what its original does.

    Raises:
        VerificationError: naming the first output that differs.
    """
    model = model_file.map_model(recognized)
    if references.make_statistics_distinct(model):
        recognized = recognized.with_name(f"distinct-{recognized.name}")
        model_file.write_model(model, recognized)
    return verify_same_function(original, recognized, options)


def _load_form(path: Path) -> ir.Model:
    """Load a training form, the types of its nodes' inputs inferred where it leaves them open."""
    form = model_file.map_model(path)
    infer_shapes_of(form, (node.inputs[0] for node in training_form.nodes(form)))
    return form


def _write_beside(model: ir.Model, candidate: Path, kind: str) -> Path:
    """Write a variant that shares the candidate's weights file."""
    path = candidate.with_name(f"{kind}-{candidate.name}")
    path.write_bytes(model_file.to_proto(model).SerializeToString(deterministic=True))
    return path


def _compare_with_inference(original: Path, candidate: Path, options: VerifyOptions) -> Verdict:
    reference = model_file.map_model(original)
    notes = make_runnable(reference)
    path = original
    if inference_reference(reference) or notes:
        path = candidate.with_name(f"reference-{candidate.name}")
        model_file.write_model(reference, path)
    outputs = [str(value.name) for value in reference.graph.outputs]
    verdict = _verdict(verify_files(path, candidate, options, outputs=outputs))
    return dataclasses.replace(verdict, notes=(*notes, *verdict.notes))


def _verdict(report: VerifyReport) -> Verdict:
    if report.differs:
        raise VerificationError(
            f"the rewritten model differs from its original: {report.first_difference}; "
            f"nothing was written (report this, or pass --no-verify or {_flag(report)})"
        )
    notes = tuple(note for note in report.notes if note != TWIN_NOTE)
    return Verdict(report.max_relative_error, report.tolerance, notes, tuple(report.outputs))


def _flag(report: VerifyReport) -> str:
    """Return the flag that could let the first difference pass."""
    return "--atol" if "whole numbers" in str(report.first_difference) else "--rtol"


def _worst(errors: Sequence[NodeError], oracle: str, options: VerifyOptions) -> Verdict:
    """Return the error nearest to its tolerance.

    Raises:
        VerificationError: for the first error beyond it.
    """
    verdict = Verdict(0.0, 0.0)
    for error in errors:
        tolerance = error.tolerance if options.rtol is None else options.rtol
        if not error.relative_error <= tolerance:
            raise VerificationError(
                f"node '{error.node}' differs from {oracle}: {error.output} by "
                f"{error.relative_error:.1e} relative, tolerance {tolerance:.1e}; nothing was "
                "written (pass --no-verify or --rtol to go on)"
            )
        verdict = verdict.worst(Verdict(error.relative_error, tolerance))
    return verdict
