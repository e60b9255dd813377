"""The command `statistics`: moving statistics out of a model, or trained values into Keras."""

from __future__ import annotations

from pathlib import Path

from syncbn_convert.cli import flags, serialization, tables, terminal
from syncbn_convert.errors import UsageError


def statistics(
    output: flags.StatisticsFile,
    model: flags.OptionalModel = None,
    to_keras: flags.ToKeras = None,
    statistics: flags.GivenStatistics = None,
    input_shape: flags.InputShape = None,
    custom_objects: flags.CustomObjects = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    force: flags.Force = False,
    json: flags.Json = None,
    quiet: flags.Quiet = False,
) -> None:
    """Write the moving statistics of MODEL to a .safetensors file.

    With --to-keras, write a Keras file with the statistics of --statistics, or with the statistics
    and weights of MODEL, a training form or in inference form; all of them, or nothing.
    """
    from syncbn_convert import keras

    terminal.configure_logging(verbose=False)
    with keras.custom_objects(*(custom_objects or ())):
        if to_keras is None:
            _extract(_only_model(model, statistics), output, force=force, json=json, quiet=quiet)
            return
        from syncbn_convert.commands import to_keras as keras_api
        from syncbn_convert.form import statistics as statistics_file

        source = _only_source(model, statistics)
        with terminal.progress(str(to_keras), enabled=not quiet):
            found = keras_api.to_keras_file(
                to_keras,
                source if statistics is None else statistics_file.load(source),
                output,
                verify=not no_verify,
                verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed),
                force=force,
            )
    if json is not None:
        content = serialization.keras_to_dict(found, to_keras, source, output)
        serialization.write_json(content, json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        terminal.print_tables(*tables.keras_tables(found, output))


def _extract(model: Path, output: Path, *, force: bool, json: str | None, quiet: bool) -> None:
    from syncbn_convert.commands import calibrate as calibrate_api

    with terminal.progress(str(model), enabled=not quiet):
        found = calibrate_api.statistics_to_file(model, output, force=force)
    content = serialization.statistics_to_dict(found, model, output)
    if json is not None:
        serialization.write_json(content, json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        terminal.print_tables(*tables.statistics_tables(content, output))


def _only_model(model: Path | None, statistics: Path | None) -> Path:
    if model is None or statistics is not None:
        raise UsageError(
            "statistics are written of MODEL alone; give it, and --statistics only with --to-keras"
        )
    return model


def _only_source(model: Path | None, statistics: Path | None) -> Path:
    source = model or statistics
    if source is None or (model and statistics):
        raise UsageError(
            "--to-keras takes values from MODEL or from --statistics; give one of them"
        )
    return source
