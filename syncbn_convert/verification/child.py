"""The child process: reads requests, runs models, writes responses.

Run as `python -m syncbn_convert.verification.child LIFELINE`, the number of a descriptor that ends
it with the process that asks. Each line of standard input is the name of a folder, as JSON, which
holds `request.json`. `response.json` is written to it, and written again where more becomes known;
then the line goes to standard output. `progress.json` says what is being done, so that the parent
can name it after a crash.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from syncbn_convert.errors import ReplicaError, SyncBNError, VerificationError
from syncbn_convert.files import lifeline
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.verification import memory
from syncbn_convert.verification.arrays import save_arrays
from syncbn_convert.verification.comparison import compare_files
from syncbn_convert.verification.feeds import Feed, other_feed, random_feed, size_attempts
from syncbn_convert.verification.loadable import loadable
from syncbn_convert.verification.model import (
    ModelFile,
    Progress,
    load_model,
    load_reference,
    open_model,
)
from syncbn_convert.verification.runners import Runner, RunnerError
from syncbn_convert.verification.runs import Run, collect_runs
from syncbn_convert.verification.tolerance import Array

_ROLES = ("reference", "candidate", "model", "like")


def serve() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks ends this process
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        answer(Path(json.loads(line)))
        replies.write(line)
        replies.flush()


def answer(folder: Path) -> None:
    """Answer the request in `folder`."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    os.chdir(request["working_directory"])

    def progress(model: Path, action: str) -> None:
        _write(folder / "progress.json", {"model": str(model), "action": action})

    models = [Path(path) for role in _ROLES if (path := request.get(role))]
    nbytes = memory.budget(models, request["options"]["memory"])
    memory.limit(nbytes)
    try:
        try:
            for response in _responses(request, folder, progress):
                _write(folder / "response.json", response)
        except MemoryError as error:
            raise memory.exceeded(models[0], nbytes) from error
    except SyncBNError as error:
        told = {"error": type(error).__name__, "message": error.message, "cures": error.cures}
        _write(folder / "response.json", told)


def _responses(
    request: dict[str, Any], folder: Path, progress: Progress
) -> Iterator[dict[str, Any]]:
    options = VerifyOptions.from_json(request["options"])
    if request["command"] == "run":
        yield {"runs": _run(request, options, folder, progress)}
        return
    if request["command"] == "audit":
        yield _audit(request, options, folder, progress)
        return
    reports = compare_files(
        Path(request["reference"]),
        Path(request["candidate"]),
        options,
        progress,
        outputs=request["outputs"],
        twin=request["twin"],
    )
    for report in reports:
        yield {"report": dataclasses.asdict(report)}


def _run(
    request: dict[str, Any], options: VerifyOptions, folder: Path, progress: Progress
) -> list[list[tuple[str, str]]]:
    model, _ = loadable(open_model(Path(request["model"])), folder / "model")
    source = model
    if request["like"]:
        source, _ = loadable(open_model(Path(request["like"])), folder / "like")
    runner, evaluator = load_reference(source, model, progress)
    progress(source.path, "running it")
    names = [spec.name for spec in source.interface.outputs]
    runs = collect_runs(source.interface, runner, options, names)
    if source is not model:
        runner = load_model(model, progress, evaluator=bool(evaluator))
        progress(model.path, "running it")
        runs = [_run_like(model, runner, run) for run in runs]
    return save_arrays(folder / "outputs.npz", [run.outputs for run in runs])


def _audit(
    request: dict[str, Any], options: VerifyOptions, folder: Path, progress: Progress
) -> dict[str, Any]:
    model, _ = loadable(open_model(Path(request["model"])), folder / "model")
    runner, evaluator = load_reference(model, model, progress)
    progress(model.path, "running it")
    names = [spec.name for spec in model.interface.outputs]
    few = dataclasses.replace(options, seeds=1)
    runs = collect_runs(model.interface, runner, few, names, sizes=1)
    outputs = save_arrays(folder / "outputs.npz", [run.outputs for run in runs])
    on_replicas = request["form"] is not None and not evaluator
    return {
        "runs": outputs,
        "replicas": _replicas(request, model, runs, options, folder, progress)
        if on_replicas
        else [],
    }


def _replicas(
    request: dict[str, Any],
    audit: ModelFile,
    runs: list[Run],
    options: VerifyOptions,
    folder: Path,
    progress: Progress,
) -> list[list[tuple[str, str]]]:
    form, _ = loadable(open_model(Path(request["form"])), folder / "form")
    run = functools.partial(_run_on_replicas, form.path, audit, options.seed)
    progress(form.path, "running it on replicas")
    first = runs[-1].feed
    other = size_attempts(audit.interface.inputs, options.input_shapes)[-1][0]
    try:
        outputs = run([first, random_feed(audit.interface.inputs, other, options.seed + 1)])
    except ReplicaError:  # the size is one that the form refuses
        outputs = run([first])
    return save_arrays(folder / "replicas.npz", outputs)


def _run_on_replicas(
    form: Path, audit: ModelFile, seed: int, feeds: list[Feed]
) -> list[dict[str, Array]]:
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # seconds saved: not needed here
    from syncbn_convert.verification.audited_run import run_audited

    others = [
        other_feed(audit.interface.inputs, feed, seed + 2 + number)
        for number, feed in enumerate(feeds)
    ]
    return run_audited(form, [feed.arrays for feed in (*feeds, *others)])


def _run_like(model: ModelFile, runner: Runner, run: Run) -> Run:
    wanted = [spec.name for spec in model.interface.inputs]
    feeds = {name: run.feed.arrays[name] for name in wanted if name in run.feed.arrays}
    try:
        outputs = runner.run(feeds, [spec.name for spec in model.interface.outputs])
    except RunnerError as error:
        raise VerificationError(
            f"{model.path}: does not run on {run.feed.label} ({error})",
            cures=["give --input-shape", "pass --no-verify"],
        ) from error
    return Run(run.feed, outputs)


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    lifeline.hold_on(int(sys.argv[1]))
    serve()
