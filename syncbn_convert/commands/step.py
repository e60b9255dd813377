"""`step`: the graphs of a training step, for other drivers."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import onnx

from syncbn_convert.commands.run import Result, check_rise
from syncbn_convert.errors import ModelFileError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.graph import graphs, random_nodes
from syncbn_convert.keras import reading
from syncbn_convert.options.optimizers import describe
from syncbn_convert.options.training import StepOptions
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from syncbn_convert.options.writing import RequiredOutput
from syncbn_convert.training.description import (
    DESCRIPTION_FILE,
    GRADIENT_FILE,
    UPDATE_FILE,
    all_reduces,
    describe_step,
)
from syncbn_convert.training.results import StepReport
from syncbn_convert.training.step_models import StepModels, build


def step(
    model: ModelLike,
    options: StepOptions,
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> StepModels:
    """Return the gradient graph, the update graph and what belongs together in them.

    Args:
        model: A training form, or any model that `convert` takes; not changed.
        options: Loss, optimizer, and what is trained.
        verify: Whether a model whose opset had to rise is compared with what it was.
        verify_options: Feeds and tolerances of that.

    Raises:
        ConversionError: if the model cannot be converted or differentiated.
        VerificationError: if a risen model is not what it was.
    """
    return _build(model, options, Verifying.given(verify, verify_options))


def _build(model: ModelLike, options: StepOptions, verifying: Verifying) -> StepModels:
    source = reading.read(model)
    models = build(source.model, options)
    opset = graphs.opset_version(models.gradient)
    notes = check_rise(source, models.form, verifying, opset=opset)
    return dataclasses.replace(models, notes=[*models.notes, *notes])


def step_file(
    input: str | os.PathLike[str],  # noqa: A002
    folder: Path,
    options: StepOptions,
    *,
    force: bool = False,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> StepReport:
    """Write `gradient.onnx`, `update.onnx` and `step.json` into a folder, which is made.

    Args:
        input: The model file.
        folder: Where to.
        options: Loss, optimizer, and what is trained.
        force: Whether the files may exist.
        verify: Whether a model whose opset had to rise is compared with what it was.
        verify_options: Feeds and tolerances of that.

    Raises:
        SyncBNError: if the model cannot be differentiated or the files cannot be written.
    """
    writing = RequiredOutput(output=folder, force=force)
    return run(Path(input), options, writing, Verifying.given(verify, verify_options)).report


def run(
    path: Path,
    options: StepOptions,
    writing: RequiredOutput,
    verifying: Verifying = Verifying(),
) -> Result[StepReport]:
    """Write the graphs of a step of a file into a folder, which is made.

    Raises:
        SyncBNError: as `step_file`.
    """
    start = time.perf_counter()
    folder = writing.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"{folder}: cannot be made: {error.strerror or error}; choose another folder"
        ) from error
    paths = [folder / name for name in (GRADIENT_FILE, UPDATE_FILE, DESCRIPTION_FILE)]
    staging.check_outputs(paths, inputs=[path], force=writing.force)
    models = _build(path, options, verifying)
    with staging.stage_output(paths[0], inputs=[path], force=writing.force) as staged:
        model_file.write_model(models.gradient, staged.path, data=staged.data)
        model_file.check_file(staged.path)
        staged.commit()
    with staging.stage_output(paths[1], force=writing.force) as staged:
        onnx.save(models.update.proto, staged.path)
        model_file.check_file(staged.path)
        staged.commit()
    with staging.stage_output(paths[2], force=writing.force) as staged:
        text = json.dumps(describe_step(models), indent=2)
        staged.path.write_text(f"{text}\n", encoding="utf-8")
        staged.commit()
    report = StepReport(
        loss=options.loss,
        optimizer=describe(options.optimizer),
        parameters=len(models.parameters),
        values=models.values,
        buckets=[bucket.size for bucket in models.buckets],
        records=models.records,
        all_reduces=all_reduces(models.gradient),
        notes=[*models.notes, *random_nodes.note(models.gradient)],
        seconds=time.perf_counter() - start,
    )
    return Result(report=report, files={"input": path, "output": folder})
