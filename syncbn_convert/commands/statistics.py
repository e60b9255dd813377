"""`statistics`: moving statistics out of a model, or trained values into a model of Keras."""

from __future__ import annotations

from pathlib import Path

from syncbn_convert.commands import to_keras as keras_command
from syncbn_convert.commands.run import Result
from syncbn_convert.errors import UsageError
from syncbn_convert.files import staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import moving_statistics
from syncbn_convert.form.moving_statistics import Statistics
from syncbn_convert.keras import reading
from syncbn_convert.options.verifying import Verifying
from syncbn_convert.options.writing import RequiredOutput
from syncbn_convert.passes import recipes
from syncbn_convert.reports import KerasReport, StatisticRange, StatisticsReport


def run(
    model: Path | None,
    writing: RequiredOutput,
    verifying: Verifying = Verifying(),
    *,
    to_keras: Path | None = None,
    given: Path | None = None,
) -> Result[StatisticsReport] | Result[KerasReport]:
    """Write the statistics of a model file, or trained values into a copy of a Keras file.

    Args:
        model: The model file; None takes `given`.
        writing: The `.safetensors` file to write, or the Keras file.
        verifying: Whether and how Keras' predictions are compared.
        to_keras: Keras file that is copied; None writes statistics.
        given: `.safetensors` file whose statistics go into the Keras file, in place of a model.

    Raises:
        UsageError: if what is given does not go together.
        SyncBNError: as `statistics_to_file` and `to_keras_file`; nothing is written then.
    """
    if to_keras is None:
        if model is None or given is not None:
            raise UsageError(
                "statistics are written of MODEL alone; give it, and --statistics only with "
                "--to-keras"
            )
        found = statistics_to_file(model, writing.output, force=writing.force)
        return Result(report=_report(found), files={"input": model, "output": writing.output})
    source = model or given
    if source is None or (model and given):
        raise UsageError(
            "--to-keras takes values from MODEL or from --statistics; give one of them"
        )
    report = keras_command.to_keras_file(
        to_keras,
        source if given is None else moving_statistics.load(source),
        writing.output,
        verify=verifying.verify,
        verify_options=verifying,
        force=writing.force,
    )
    return Result(
        report=report, files={"input": to_keras, "source": source, "output": writing.output}
    )


def extract_statistics(model: ModelLike) -> Statistics:
    """Return the moving statistics of a training form or of a model with BatchNormalization.

    Raises:
        ConversionError: if the model holds none that can be named.
    """
    return moving_statistics.of_form(recipes.to_form(reading.read(model).model))


def statistics_to_file(model: Path, output: Path, *, force: bool = False) -> Statistics:
    """Write the moving statistics of a model file to a `.safetensors` file; return them."""
    staging.check_outputs([output], inputs=[model], force=force)
    found = extract_statistics(model)
    write_statistics(found, output, force=force)
    return found


def write_statistics(statistics: Statistics, path: Path, *, force: bool) -> None:
    """Write statistics to a file, which appears whole or not at all.

    Raises:
        UsageError: if it exists and `force` is not given.
        ModelFileError: if it cannot be written.
    """
    with staging.stage_output(path, force=force) as staged:
        moving_statistics.save(statistics, staged.path)
        staged.commit()


def _report(found: Statistics) -> StatisticsReport:
    return StatisticsReport(
        layers_digest=found.layers_digest,
        statistics=[
            StatisticRange(
                name=name,
                channels=values.size,
                dtype=str(values.dtype),
                min=float(values.min()),
                max=float(values.max()),
            )
            for name, values in found.tensors.items()
        ],
    )
