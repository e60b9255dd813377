"""What one step of synchronized training costs: gradient, sum over replicas, update.

Side by side in one run, round by round:

-   ResNet-50 of keras.applications at 64x64 with 8 samples a replica, read from its `.keras` file,
    on two MPI processes of one thread each, SGD with momentum;
-   TensorFlow: the same network, every BatchNormalization synchronized, under MirroredStrategy over
    two logical CPU devices, Keras' SGD with momentum. Its thread pools may use every core;
-   ResNet-50 v1.5 and digits_cnn on one replica, and onnxsim's compiled training loop on the same
    networks, both on every core. It differentiates BatchNormalization in inference mode alone,
    which is less to do.

A round times a few steps of each; a ratio is the median over the rounds of the ratio in each. Then
`differentiate` alone is timed on 1,000 nodes. Run `python benchmarks/train_step.py`; it
exits 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import resnet50
import step as forward_step
from onnx import TensorProto, helper, numpy_helper
from step import contender, seconds_per_step

import syncbn_convert
from syncbn_convert import ConvertOptions, StepOptions
from syncbn_convert.files import model_file
from syncbn_convert.options.optimizers import Sgd
from syncbn_convert.passes import AddLoss, Differentiate
from syncbn_convert.rewriting import pipeline
from syncbn_convert.runtime.communicator import Communicator, LocalCommunicator
from syncbn_convert.runtime.mpi import MpiCommunicator
from syncbn_convert.training.replica import LoadedStep, TrainingReplica
from syncbn_convert.training.samples import Micro
from syncbn_convert.training.step_models import build

Array = npt.NDArray[Any]

REPLICAS = 2
SAMPLES = 8
IMAGE_SIZE = 64
CLASSES = 1000
STEPS_PER_ROUND = 3
MOMENTUM = 0.9
LEARNING_RATE = 1e-3
NODES = 1000
DIGITS = Path(__file__).parents[1] / "models" / "digits_cnn.onnx"
DIGITS_SAMPLES = 64

KERAS = "keras ResNet50, 2 replicas"
TENSORFLOW = "keras ResNet50, 2 replicas, TensorFlow"
RESNET = "ResNet-50 v1.5, 1 replica"
RESNET_ONNXSIM = "ResNet-50 v1.5, onnxsim"
DIGITS_ALONE = "digits_cnn, 1 replica"
DIGITS_ONNXSIM = "digits_cnn, onnxsim"

BOUNDS = (
    (KERAS, TENSORFLOW, 1.0),
    (RESNET, RESNET_ONNXSIM, 0.5),
    (DIGITS_ALONE, DIGITS_ONNXSIM, 0.5),
)
SECONDS_FOR_NODES = 2.0


@dataclasses.dataclass(frozen=True)
class Net:
    """A network and one batch for it."""

    model: onnx.ModelProto
    feeds: dict[str, Array]
    labels: Array
    classes: int


def images(rank: int) -> Array:
    random = np.random.default_rng(rank)
    return random.standard_normal((SAMPLES, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def labels(rank: int) -> Array:
    return np.random.default_rng(rank).integers(0, CLASSES, SAMPLES)


def net(name: str) -> Net:
    """A network that onnxsim can differentiate, too."""
    if name in (DIGITS_ALONE, DIGITS_ONNXSIM):
        batch = np.load(DIGITS.with_name("digits_train.npz"))["image"][:DIGITS_SAMPLES]
        feeds = {"image": batch}
        return Net(onnx.load(DIGITS), feeds, np.arange(DIGITS_SAMPLES) % 10, 10)
    batch = images(0).transpose(0, 3, 1, 2).copy()
    model = resnet50.build(image_size=IMAGE_SIZE)
    return Net(model, {resnet50.INPUT: batch}, labels(0), CLASSES)


def training_step(
    model: onnx.ModelProto | Path, communicator: Communicator, micro: Micro, threads: int
) -> Callable[[], object]:
    """Load a model as `train` does, and return a step of it."""
    options = StepOptions(
        loss="softmax-cross-entropy", labels="labels", optimizer=Sgd(momentum=MOMENTUM)
    )
    models = build(model_file.as_model(model), options)
    loaded = LoadedStep(models, threads, threads, alone=communicator.size == 1)
    replica = TrainingReplica(loaded, communicator, {})
    return lambda: replica.step([micro], LEARNING_RATE)


def alone(name: str) -> Callable[[], object]:
    chosen = net(name)
    micro = Micro({**chosen.feeds, "labels": chosen.labels}, len(chosen.labels))
    return training_step(chosen.model, LocalCommunicator(), micro, os.cpu_count() or 1)


def onnxsim_step(name: str) -> Callable[[], object]:
    """Return a step of onnxsim's compiled training loop: static sizes, the loss written out."""
    chosen = net(name)
    model, count = chosen.model, len(chosen.labels)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = count
    for node in graph.node:
        if node.op_type == "Flatten":  # it has no rule for that one
            node.op_type = "Reshape"
            node.input.append("flat_shape")
            del node.attribute[:]
            graph.initializer.append(numpy_helper.from_array(np.array([count, -1]), "flat_shape"))
    probabilities = graph.output[0].name
    if all(node.op_type != "Softmax" for node in graph.node):
        graph.node.append(helper.make_node("Softmax", [probabilities], ["probabilities"]))
        probabilities = "probabilities"
    shape = [count, chosen.classes]
    graph.input.append(helper.make_tensor_value_info("target", TensorProto.FLOAT, shape))
    graph.node.extend(
        [
            helper.make_node("Log", [probabilities], ["logarithms"]),
            helper.make_node("Mul", ["logarithms", "target"], ["terms"]),
            helper.make_node("ReduceSum", ["terms"], ["sum"], keepdims=0),
            helper.make_node("Neg", ["sum"], ["loss"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    model = onnx.shape_inference.infer_shapes(model)
    moving = {
        name
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        for name in node.input[3:]
    }
    trained = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in moving
    ]
    onnxsim: Any = importlib.import_module("onnxsim")
    loop = onnxsim.compile_training_loop(model, "loss", trained, optimizer="sgd_momentum")
    target = np.zeros(shape, np.float32)
    target[np.arange(count), chosen.labels] = 1 / count
    feeds = {**chosen.feeds, "target": target}
    return lambda: loop(feeds, lr=LEARNING_RATE)


def mpi_worker(form: Path) -> None:
    """One of the two processes; rank 0 reads jobs from stdin and answers on stdout."""
    communicator = MpiCommunicator()
    rank = communicator.rank
    loaded = onnx.load(form)
    feeds = {loaded.graph.input[0].name: images(rank), "labels": labels(rank)}
    run = training_step(loaded, communicator, Micro(feeds, REPLICAS * SAMPLES), threads=1)
    jobs = forward_step.MpiJobs(communicator)
    while jobs.next():
        communicator.barrier()
        seconds = max(communicator.all_gather(seconds_per_step(run, STEPS_PER_ROUND)))
        if rank == 0:
            print(json.dumps({"seconds": seconds}), flush=True)


def single_worker(make: Callable[[], Callable[[], object]]) -> None:
    run = make()
    while sys.stdin.readline().strip():
        print(json.dumps({"seconds": seconds_per_step(run, STEPS_PER_ROUND)}), flush=True)


def tensorflow_step() -> Callable[[], object]:
    tf, keras, strategy, model = forward_step.synchronized_resnet50()
    with strategy.scope():
        optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
        optimizer.build(model.trainable_variables)
    pieces = [
        strategy.experimental_distribute_values_from_function(
            lambda context, make=make: tf.constant(make(context.replica_id_in_sync_group))
        )
        for make in (images, labels)
    ]

    def replica_step(batch: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            found = model(batch, training=True)
            terms = keras.losses.sparse_categorical_crossentropy(target, found)
            loss = tf.reduce_sum(terms) / (REPLICAS * SAMPLES)
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    @tf.function  # type: ignore[untyped-decorator]
    def distributed(batch: Any, target: Any) -> Any:
        return strategy.run(replica_step, args=(batch, target))

    return lambda: [
        value.numpy() for value in strategy.experimental_local_results(distributed(*pieces))
    ]


def export(target: Path) -> None:
    """Write the training form of keras' ResNet50."""
    keras: Any = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None, input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3))
    source = target.with_suffix(".keras")
    model.save(source)
    syncbn_convert.convert_file(source, target, ConvertOptions(opset=18), verify=False)


def measure(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return seconds a step by contender and round."""
    form = folder / "form.onnx"
    worker = forward_step.worker_command
    forward_step.run_worker(worker(__file__, "export", "--form", os.fspath(form)))
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = {
            KERAS: stack.enter_context(contender(forward_step.mpirun(__file__, form))),
            **{
                name: stack.enter_context(contender(worker(__file__, kind, "--net", name)))
                for name, kind in (
                    (TENSORFLOW, "tensorflow"),
                    (RESNET, "alone"),
                    (RESNET_ONNXSIM, "onnxsim"),
                    (DIGITS_ALONE, "alone"),
                    (DIGITS_ONNXSIM, "onnxsim"),
                )
            },
        }
        for number in range(rounds + 1):
            for name, process in workers.items():
                answer = process.ask("step")
                if number > 0:
                    seconds.setdefault(name, []).append(answer["seconds"])
    return seconds


def seconds_to_differentiate() -> float:
    """Time `differentiate` on a chain of 1,000 nodes: convolutions, normalizations, activations."""
    shape = [4, 4, 3, 3]
    nodes, initializers, x = [], [], "x"
    for number in range(NODES // 4):
        names = [f"{role}{number}" for role in ("w", "scale", "bias", "mean", "var")]
        arrays = [np.ones(shape), *[np.ones(4)] * 4]
        initializers += [
            numpy_helper.from_array(array.astype(np.float32), name)
            for array, name in zip(arrays, names, strict=True)
        ]
        conv, norm, relu, total = (f"{op}{number}" for op in ("conv", "norm", "relu", "add"))
        nodes += [
            helper.make_node("Conv", [x, names[0]], [conv], conv, pads=[1] * 4),
            helper.make_node("BatchNormalization", [conv, *names[1:]], [norm], norm),
            helper.make_node("Relu", [norm], [relu], relu),
            helper.make_node("Add", [relu, x], [total], total),
        ]
        x = total
    shaped = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "chain",
        [shaped("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [shaped(x, TensorProto.FLOAT, ["N", 4, 8, 8])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    subject = model_file.as_model(syncbn_convert.convert(model, verify=False))
    passes = [AddLoss(loss="mse", labels="target"), Differentiate(loss="loss")]
    return pipeline.run(subject, passes).timings["differentiate"]


def print_steps(seconds: dict[str, list[float]]) -> bool:
    """Print the table and return whether all bounds hold."""
    print("ms a step, median")
    for name, values in seconds.items():
        print(f"  {name:50s}{1e3 * statistics.median(values):9.1f}")
    print(f"{'ratio':74s}{'is':>6s}{'bound':>8s}")
    held = True
    for name, peer, bound in BOUNDS:
        pairs = zip(seconds[name], seconds[peer], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        held &= ratio <= bound
        missed = "" if ratio <= bound else "!"
        print(f"  {name + ' / ' + peer:71s}{ratio:6.2f}{missed:1s}{bound:8.2f}")
    return held


def benchmark(rounds: int) -> bool:
    """Measure and print everything; return whether all bounds hold."""
    with tempfile.TemporaryDirectory() as folder:
        held = print_steps(measure(rounds, Path(folder)))
    taken = seconds_to_differentiate()
    print(f"differentiate {NODES} nodes, s{taken:55.2f}{SECONDS_FOR_NODES:8.2f}")
    return held and taken <= SECONDS_FOR_NODES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=9)
    workers = ["mpi", "tensorflow", "alone", "onnxsim", "export"]
    parser.add_argument("--worker", choices=workers, help=argparse.SUPPRESS)
    parser.add_argument("--form", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--net", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "mpi":
        mpi_worker(arguments.form)
    elif arguments.worker == "tensorflow":
        single_worker(tensorflow_step)
    elif arguments.worker == "alone":
        single_worker(lambda: alone(arguments.net))
    elif arguments.worker == "onnxsim":
        single_worker(lambda: onnxsim_step(arguments.net))
    elif arguments.worker == "export":
        export(arguments.form)
    else:
        return 0 if benchmark(arguments.rounds) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
