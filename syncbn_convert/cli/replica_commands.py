"""The commands that run models on one or many replicas."""

from __future__ import annotations

from syncbn_convert.cli import flags, layer_flags, serialization, tables, terminal
from syncbn_convert.cli.pages import PageWriter
from syncbn_convert.errors import UsageError


def calibrate(
    model: flags.Model,
    data: flags.Samples,
    output: flags.ModelOutput = None,
    statistics_out: flags.StatisticsOutput = None,
    fold: flags.FoldResult = False,
    method: flags.Method = "precise",
    batch_size: flags.BatchSize = 32,
    batches: flags.Batches = None,
    warmup: flags.Warmup = 0,
    replicas: flags.Replicas = 1,
    engine: flags.EngineName = "auto",
    threads_per_replica: flags.ThreadsPerReplica = None,
    collective_timeout: flags.CollectiveTimeout = 300.0,
    input_shape: flags.InputShape = None,
    custom_objects: flags.CustomObjects = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    force: flags.Force = False,
    json: flags.Json = None,
    report: flags.Page = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
) -> None:
    """Re-estimate moving statistics on data, on one or many replicas.

    A training form stays one (but see --fold), any other model stays in inference form. Under
    mpirun or torchrun each process is a replica.
    """
    if output is None and statistics_out is None:
        raise UsageError(
            "calibrate has nothing to write: give -o FILE, --statistics-out FILE or both"
        )
    from syncbn_convert import keras
    from syncbn_convert.commands import calibrate as calibrate_api

    terminal.configure_logging(verbose=verbose)
    with (
        keras.custom_objects(*(custom_objects or ())),
        terminal.batches(str(model), enabled=not (quiet or verbose)) as progress,
    ):
        page = PageWriter(report, model)
        found = calibrate_api.calibrate_file(
            model,
            data,
            output,
            calibrate_api.CalibrateOptions(
                method=method, batch_size=batch_size, batches=batches, warmup=warmup
            ),
            replicas=calibrate_api.ReplicaOptions(
                engine=engine,
                replicas=replicas,
                threads_per_replica=threads_per_replica,
                timeout=collective_timeout,
            ),
            fold=fold,
            statistics_out=statistics_out,
            verify=not no_verify,
            verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed),
            force=force,
            progress=progress,
        )
    if found is None:
        return
    page.write(found, output)
    if json is not None:
        content = serialization.calibration_to_dict(found, model, output, statistics_out)
        serialization.write_json(content, json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        verifies = output is not None
        terminal.print_tables(
            *tables.calibrate_tables(found, (output, statistics_out), verifies=verifies)
        )


def unfuse(
    model: flags.Model,
    data: flags.Samples,
    output: flags.Output = None,
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    epsilon: layer_flags.Epsilon = None,
    momentum: layer_flags.Momentum = None,
    batch_size: flags.BatchSize = 32,
    batches: flags.Batches = None,
    replicas: flags.Replicas = 1,
    engine: flags.EngineName = "auto",
    threads_per_replica: flags.ThreadsPerReplica = None,
    collective_timeout: flags.CollectiveTimeout = 300.0,
    input_shape: flags.InputShape = None,
    custom_objects: flags.CustomObjects = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    seed: flags.Seed = None,
    force: flags.Force = False,
    json: flags.Json = None,
    report: flags.Page = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
) -> None:
    """Give layers their normalization back, with statistics measured on data.

    The function in inference stays as it is. The result is verified, then written; by default as
    MODEL.unfused.onnx beside MODEL.
    """
    from syncbn_convert import keras
    from syncbn_convert.commands import unfuse as unfuse_api
    from syncbn_convert.runtime.run import ReplicaOptions

    terminal.configure_logging(verbose=verbose)
    given = {"epsilon": epsilon, "momentum": momentum}
    options = unfuse_api.UnfuseOptions(
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        batch_size=batch_size,
        batches=batches,
        **{name: value for name, value in given.items() if value is not None},
    )
    with (
        keras.custom_objects(*(custom_objects or ())),
        terminal.batches(str(model), enabled=not (quiet or verbose)) as progress,
    ):
        page = PageWriter(report, model)
        done = unfuse_api.unfuse_file(
            model,
            data,
            output,
            options,
            replicas=ReplicaOptions(
                engine=engine,
                replicas=replicas,
                threads_per_replica=threads_per_replica,
                timeout=collective_timeout,
            ),
            verify=not no_verify,
            verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol, seed=seed),
            force=force,
            progress=progress,
        )
    if done is None:
        return
    written, found = done
    page.write(found, written)
    if json is not None:
        serialization.write_json(serialization.rewrite_to_dict(found, model, written), json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        terminal.print_tables(*tables.rewrite_tables(found, written, dry_run=False))
