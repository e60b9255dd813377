"""The parent's side: asks the child process and turns its answer or its end into a result."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from syncbn_convert import errors
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.reports import OutputDifference, VerifyReport
from syncbn_convert.verification.arrays import load_arrays
from syncbn_convert.verification.child_process import Children
from syncbn_convert.verification.tolerance import Array

_DEFAULTS = VerifyOptions()
_children = Children()


class _ChildDiedError(errors.VerificationError):
    """The child process ended without an answer."""


def verify_files(
    reference: Path,
    candidate: Path,
    options: VerifyOptions = _DEFAULTS,
    *,
    outputs: Sequence[str] | None = None,
) -> VerifyReport:
    """Compare two model files on ONNX Runtime, in a child process.

    The interface comes first, then the values: random inputs of several seeds and, for dynamic
    dimensions, several sizes, other values for initializers that both models let override, and the
    user's data. A size that the reference refuses is passed over; one that only the candidate
    refuses is a difference. Where values differ the report names the first node that does.

    Args:
        reference: The model that is right.
        candidate: The model in question.
        options: How to compare; the tolerance is described in `verification.tolerance`.
        outputs: Names of the outputs to compare; with None all, which then must be the same.

    Raises:
        ModelFileError: A file is missing or no ONNX model.
        UsageError: The options do not fit the models.
        VerificationError: A model cannot be run, or the comparison crashed or took too long.
    """
    _require_files(reference, candidate)
    request = {
        "command": "verify",
        "reference": str(reference),
        "candidate": str(candidate),
        "outputs": None if outputs is None else list(outputs),
        "options": options.to_json(),
    }
    with (
        tempfile.TemporaryDirectory(prefix="syncbn-convert-") as folder,
        _only_cures_of(options),
    ):
        response = _ask_again_without_twin(request, Path(folder), options.timeout)
    report = response["report"]
    differences = [OutputDifference(**entry) for entry in report["outputs"]]
    return VerifyReport(**{**report, "outputs": differences})


def run_model_file(
    model: Path, options: VerifyOptions = _DEFAULTS, *, like: Path | None = None
) -> list[dict[str, Array]]:
    """Run a model file on the inputs that `verify_files` would make, in a child process.

    Overridable initializers keep their values.

    Args:
        model: The model to run.
        options: Seeds, shapes and data.
        like: A model whose interface, and whose refusals of sizes, decide on the inputs; the model
            itself if None. Inputs that `model` does not have are left out.

    Returns:
        The outputs by name, for every run.

    Raises:
        ModelFileError: A file is missing or no ONNX model.
        UsageError: The options do not fit the model.
        VerificationError: The model cannot be run, crashed the runtime or took too long.
    """
    _require_files(model, *([] if like is None else [like]))
    request = {
        "command": "run",
        "model": str(model),
        "like": None if like is None else str(like),
        "options": options.to_json(),
    }
    with tempfile.TemporaryDirectory(prefix="syncbn-convert-") as folder:
        with _only_cures_of(options):
            index = _ask(request, Path(folder), options.timeout)["runs"]
        return load_arrays(Path(folder) / "outputs.npz", index)


def run_audits(
    audit: Path, form: Path | None, options: VerifyOptions = _DEFAULTS
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Run a training form's audit, and the form on replicas with different data.

    There are two replicas, or as many as make whole groups.

    Args:
        audit: What `form_audit.audit_model` made of the form.
        form: The form; None where it is not to be run on replicas.
        options: Seeds, shapes and data.

    Returns:
        The outputs of the audit by name, for every run; and those of each replica, those of
        `replica_audit` among them, nothing if ONNX Runtime does not run the form, or its groups are
        too large to try.

    Raises:
        VerificationError: The model cannot be run, crashed the runtime or took too long.
    """
    request = {
        "command": "audit",
        "model": str(audit),
        "form": None if form is None else str(form),
        "options": options.to_json(),
    }
    with tempfile.TemporaryDirectory(prefix="syncbn-convert-") as folder:
        with _only_cures_of(options):
            answer = _ask(request, Path(folder), options.timeout)
        return (
            load_arrays(Path(folder) / "outputs.npz", answer["runs"]),
            load_arrays(Path(folder) / "replicas.npz", answer["replicas"])
            if answer["replicas"]
            else [],
        )


def prepare() -> None:
    """Start the child process, which takes most of a second, before there is something to ask."""
    _children.start()


def child_id() -> int | None:
    """Return the process number of the child; None if there is none."""
    return _children.process_id


def _require_files(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise errors.ModelFileError(f"{path}: no such file; give the path of an ONNX model")


def _ask_again_without_twin(
    request: dict[str, Any], folder: Path, timeout: float
) -> dict[str, Any]:
    try:
        return _ask({**request, "twin": True}, folder, timeout)
    except _ChildDiedError as error:
        if "float64 twin" not in str(error):
            raise
    return _ask({**request, "twin": False}, folder, timeout)


@contextlib.contextmanager
def _only_cures_of(options: VerifyOptions) -> Iterator[None]:
    """Leave those cures out of errors that take a flag which the command does not have."""
    try:
        yield
    except _ChildDiedError as error:
        told = errors.VerificationError(error.message, cures=error.cures)
        raise told.offering(options.cure_flags) from error
    except errors.SyncBNError as error:
        raise error.offering(options.cure_flags) from error


def _ask(request: dict[str, Any], folder: Path, timeout: float) -> dict[str, Any]:
    request = {**request, "working_directory": os.getcwd()}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    end, failure = _children.ask(folder, timeout)
    answer = folder / "response.json"
    if end > 0:
        raise RuntimeError(f"the verification process failed:\n{failure}")
    if not answer.exists():
        raise _death(folder, end, timeout)
    response: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in response:
        raise getattr(errors, response["error"])(response["message"], cures=response["cures"])
    return response


def _death(folder: Path, end: int, timeout: float) -> _ChildDiedError:
    progress = folder / "progress.json"
    doing = json.loads(progress.read_text(encoding="utf-8")) if progress.exists() else {}
    where = f"{doing.get('model', 'verification')}: "
    action = doing.get("action", "starting")
    if end < 0:
        name = signal.Signals(-end).name
        return _ChildDiedError(
            f"{where}the process that compares was ended by {name} while {action}; "
            "ONNX Runtime crashes on this model or memory ran out",
            cures=["give smaller sizes with --input-shape", "pass --no-verify"],
        )
    return _ChildDiedError(
        f"{where}not done within {timeout:g} s while {action}",
        cures=["give smaller sizes with --input-shape", "pass --no-verify"],
    )
