"""The commands that train, on one or many replicas."""

from __future__ import annotations

from syncbn_convert.cli import flags, serialization, terminal, train_flags, train_tables
from syncbn_convert.cli.pages import PageWriter
from syncbn_convert.cli.train_progress import training
from syncbn_convert.errors import UsageError


def step(
    model: flags.Model,
    loss: train_flags.Loss,
    output: train_flags.StepFolder,
    labels: train_flags.Labels = None,
    loss_output: train_flags.LossOutput = None,
    optimizer: train_flags.OptimizerName = "sgd",
    momentum: train_flags.SgdMomentum = None,
    nesterov: train_flags.Nesterov = False,
    beta_one: train_flags.BetaOne = None,
    beta_two: train_flags.BetaTwo = None,
    adam_epsilon: train_flags.AdamEpsilon = None,
    weight_decay: train_flags.WeightDecay = None,
    trainable: train_flags.Trainable = None,
    frozen: train_flags.Frozen = None,
    custom_objects: flags.CustomObjects = None,
    force: flags.Force = False,
    json: flags.Json = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
) -> None:
    """Write the graphs of a training step for other drivers.

    DIR gets gradient.onnx, update.onnx and step.json, which says what belongs together.
    """
    from syncbn_convert import keras
    from syncbn_convert.commands import train as train_api

    terminal.configure_logging(verbose=verbose)
    options = train_flags.step_options(
        loss,
        labels,
        loss_output,
        trainable,
        frozen,
        train_flags.OptimizerFlags(
            name=optimizer,
            momentum=momentum,
            nesterov=nesterov,
            beta_one=beta_one,
            beta_two=beta_two,
            adam_epsilon=adam_epsilon,
            weight_decay=weight_decay,
        ),
    )
    with (
        keras.custom_objects(*(custom_objects or ())),
        terminal.progress(str(model), enabled=not (quiet or verbose)),
    ):
        found = train_api.step_file(model, output, options, force=force)
    if json is not None:
        serialization.write_json(serialization.step_to_dict(found, model, output), json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        terminal.print_tables(*train_tables.step_tables(found, output))


def train(
    model: flags.Model,
    data: flags.Samples,
    loss: train_flags.Loss,
    learning_rate: train_flags.LearningRate,
    output: train_flags.TrainOutput,
    labels: train_flags.Labels = None,
    loss_output: train_flags.LossOutput = None,
    eval_data: train_flags.EvalData = None,
    optimizer: train_flags.OptimizerName = "sgd",
    momentum: train_flags.SgdMomentum = None,
    nesterov: train_flags.Nesterov = False,
    beta_one: train_flags.BetaOne = None,
    beta_two: train_flags.BetaTwo = None,
    adam_epsilon: train_flags.AdamEpsilon = None,
    weight_decay: train_flags.WeightDecay = None,
    schedule: train_flags.ScheduleName = "constant",
    warmup: train_flags.Warmup = 0,
    milestone: train_flags.Milestones = None,
    factor: train_flags.Factor = 0.1,
    epochs: train_flags.Epochs = 1,
    batch_size: train_flags.TrainBatchSize = 32,
    accumulate: train_flags.Accumulate = 1,
    seed: train_flags.OrderSeed = 0,
    no_shuffle: train_flags.NoShuffle = False,
    trainable: train_flags.Trainable = None,
    frozen: train_flags.Frozen = None,
    checkpoint: train_flags.CheckpointFolder = None,
    checkpoint_every: train_flags.CheckpointEvery = None,
    resume: train_flags.Resume = False,
    replicas: flags.Replicas = 1,
    engine: flags.EngineName = "auto",
    threads_per_replica: flags.ThreadsPerReplica = None,
    collective_timeout: flags.CollectiveTimeout = 300.0,
    custom_objects: flags.CustomObjects = None,
    input_shape: flags.InputShape = None,
    no_verify: flags.NoVerify = False,
    rtol: flags.RelativeTolerance = None,
    atol: flags.AbsoluteTolerance = None,
    force: flags.Force = False,
    json: flags.Json = None,
    report: flags.Page = None,
    verbose: flags.Verbose = False,
    quiet: flags.Quiet = False,
) -> None:
    """Train a model on data, on one or many replicas.

    The result is the training form with new weights under the same names; fold it to deploy it.
    Under mpirun or torchrun each process is a replica.
    """
    if checkpoint is None and (resume or checkpoint_every is not None):
        raise UsageError("--resume and --checkpoint-every need the folder: --checkpoint DIR")
    from syncbn_convert import keras
    from syncbn_convert.commands import train as train_api

    terminal.configure_logging(verbose=verbose)
    step_options = train_flags.step_options(
        loss,
        labels,
        loss_output,
        trainable,
        frozen,
        train_flags.OptimizerFlags(
            name=optimizer,
            momentum=momentum,
            nesterov=nesterov,
            beta_one=beta_one,
            beta_two=beta_two,
            adam_epsilon=adam_epsilon,
            weight_decay=weight_decay,
        ),
    )
    options = train_api.TrainOptions(
        schedule=train_flags.learning_rates(learning_rate, schedule, warmup, milestone, factor),
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=seed,
        shuffle=not no_shuffle,
    )
    with (
        keras.custom_objects(*(custom_objects or ())),
        training(str(model), enabled=not (quiet or verbose)) as progress,
    ):
        page = PageWriter(report, model)
        found = train_api.train_file(
            model,
            data,
            output,
            step_options,
            options,
            eval_data=eval_data,
            replicas=train_api.ReplicaOptions(
                engine=engine,
                replicas=replicas,
                threads_per_replica=threads_per_replica,
                timeout=collective_timeout,
            ),
            checkpointing=None
            if checkpoint is None
            else train_api.Checkpointing(folder=checkpoint, resume=resume, every=checkpoint_every),
            verify=not no_verify,
            verify_options=flags.verify_options(input_shape, rtol=rtol, atol=atol),
            force=force,
            progress=progress,
        )
    if found is None:
        return
    page.write(found, output)
    if json is not None:
        serialization.write_json(serialization.training_to_dict(found, model, output), json)
    if json != flags.STANDARD_OUTPUT and not quiet:
        terminal.print_tables(*train_tables.train_tables(found, output))
