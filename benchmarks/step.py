"""What one synchronized training-mode step costs: ResNet-50, two replicas, one machine.

Forward in training mode: batch statistics normalize, moving statistics are updated. Side by side in
one run, round by round:

-   the training form on two MPI processes, one thread each;
-   TensorFlow: Keras' ResNet-50 with every BatchNormalization synchronized, under MirroredStrategy
    over two logical CPU devices. It is version 1 of the network, which does a little less
    arithmetic than version 1.5 here, and its thread pools may use every core;
-   ONNX's own training-mode kernels, unsynchronized, on the same two processes;
-   one replica alone: the training form, and the kernels.

A round times a few steps of each; a ratio is the median over the rounds of the ratio in each. Run
`python benchmarks/step.py`; it exits 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import resnet50

import syncbn_convert
from syncbn_convert.runtime import ReplicaSession
from syncbn_convert.runtime.communicator import Communicator, Float64
from syncbn_convert.runtime.mpi import MpiCommunicator
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import StepResult
from syncbn_convert.runtime.torch_distributed import TorchCommunicator

if TYPE_CHECKING:
    from mpi4py import MPI

REPLICAS = 2
SAMPLES = 8
IMAGE_SIZE = 64
CHANNELS = 512
STEPS_PER_ROUND = 5
CALLS = 300

SYNCHRONIZED = "training form, 2 replicas"
TENSORFLOW = "TensorFlow synchronized, 2 replicas"
UNSYNCHRONIZED = "kernels unsynchronized, 2 processes"
ALONE = "training form, 1 replica"
KERNELS_ALONE = "kernels, 1 process"

BOUNDS = (
    (SYNCHRONIZED, TENSORFLOW, 0.8),
    (SYNCHRONIZED, UNSYNCHRONIZED, 1.5),
    (ALONE, KERNELS_ALONE, 1.3),
)

_POLL_SECONDS = 0.002


def _images(rank: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(rank)
    return random.standard_normal((SAMPLES, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)


def seconds_per_step(step: Callable[[], object], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def _seconds_per_all_reduce(communicator: Communicator) -> float:
    values = np.ones(2 * CHANNELS + 1)
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        communicator.all_reduce_sum(values)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class _TimedMpi(MpiCommunicator):
    """Adds up the seconds spent in AllReduce, waiting for the other replica included."""

    seconds = 0.0

    def all_reduce_sum(self, values: Float64) -> Float64:
        start = time.perf_counter()
        total = super().all_reduce_sum(values)
        self.seconds += time.perf_counter() - start
        return total


class MpiJobs:
    """Jobs that rank 0 reads from stdin, told to all ranks."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._comm: MPI.Comm = importlib.import_module("mpi4py.MPI").COMM_WORLD

    def next(self) -> str:
        """Wait without load, unlike MPI's own broadcast: other contenders are being timed."""
        if self._communicator.rank == 0:
            job = sys.stdin.readline().strip()
            for rank in range(1, self._communicator.size):
                self._comm.send(job, dest=rank)
            return job
        while not self._comm.Iprobe(source=0):
            time.sleep(_POLL_SECONDS)
        return str(self._comm.recv(source=0))


class _MpiWorker:
    """One of the two processes; rank 0 reads jobs from stdin and answers on stdout."""

    def __init__(self, form: Path) -> None:
        self.communicator = _TimedMpi()
        images = _images(self.communicator.rank)
        together = ReplicaSession(form, self.communicator)
        alone = ReplicaSession(form)
        kernels = resnet50.Kernels(IMAGE_SIZE)
        self._jobs = MpiJobs(self.communicator)

        def step_of(session: ReplicaSession) -> Callable[[], StepResult]:
            return lambda: session.step({resnet50.INPUT: images})

        self._steps: dict[str, Callable[[], object]] = {
            SYNCHRONIZED: step_of(together),
            UNSYNCHRONIZED: lambda: kernels.step(images),
            ALONE: step_of(alone),
            KERNELS_ALONE: lambda: kernels.step(images),
        }

    def run(self) -> None:
        while job := self._jobs.next():
            answer = self._do(job)
            if self.communicator.rank == 0:
                print(json.dumps(answer), flush=True)

    def _do(self, job: str) -> dict[str, float]:
        if job == "AllReduce":
            return {"seconds": _seconds_per_all_reduce(self.communicator)}
        if job in (ALONE, KERNELS_ALONE) and self.communicator.rank != 0:
            return {}
        together = job in (SYNCHRONIZED, UNSYNCHRONIZED)
        if together:
            self.communicator.barrier()
        self.communicator.seconds = 0.0
        seconds = seconds_per_step(self._steps[job], STEPS_PER_ROUND)
        all_reduce = self.communicator.seconds / STEPS_PER_ROUND
        if together:
            seconds = max(self.communicator.all_gather(seconds))
        return {"seconds": seconds, "all_reduce": all_reduce}


def _tensorflow_worker() -> None:
    step = _tensorflow_step()
    while sys.stdin.readline().strip():
        print(json.dumps({"seconds": seconds_per_step(step, STEPS_PER_ROUND)}), flush=True)


def synchronized_resnet50() -> tuple[Any, Any, Any, Any]:
    """Return TensorFlow, Keras, a strategy over two logical devices, and ResNet50 under it."""
    tf: Any = importlib.import_module("tensorflow")
    keras: Any = importlib.import_module("keras")
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration() for _ in range(REPLICAS)]
    tf.config.set_logical_device_configuration(cpu, logical)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{rank}" for rank in range(REPLICAS)])

    def synchronized(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["synchronized"] = True
        return layer.__class__.from_config(config)

    with strategy.scope():
        plain = keras.applications.ResNet50(weights=None, input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3))
        model = keras.models.clone_model(plain, clone_function=synchronized)
    return tf, keras, strategy, model


def _tensorflow_step() -> Callable[[], object]:
    tf, _, strategy, model = synchronized_resnet50()
    images = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            _images(context.replica_id_in_sync_group).transpose(0, 2, 3, 1).copy()
        )
    )

    def forward(pieces: Any) -> Any:
        return strategy.run(lambda piece: model(piece, training=True), args=(pieces,))

    step = tf.function(forward)
    return lambda: [piece.numpy() for piece in strategy.experimental_local_results(step(images))]


def _torch_worker() -> None:
    communicator = TorchCommunicator("gloo")
    seconds = _seconds_per_all_reduce(communicator)
    if communicator.rank == 0:
        print(json.dumps({"seconds": seconds}), flush=True)
    communicator.close()


class _Contender:
    """A worker process that answers each job with one line of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, job: str) -> dict[str, float]:
        stdout = self._process.stdout
        assert stdout is not None
        self._write(job)
        return _answer(stdout)

    def stop(self) -> None:
        """Say so with an empty line: mpirun does not pass on the end of stdin."""
        self._write("")

    def _write(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{line}\n")
        stdin.flush()


def _answer(stdout: Iterable[str]) -> dict[str, float]:
    for line in stdout:
        if line.startswith("{"):
            answer: dict[str, float] = json.loads(line)
            return answer
    raise SystemExit("error: a worker ended early; see its messages above")


@contextmanager
def contender(command: list[str]) -> Iterator[_Contender]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        started = _Contender(process)
        yield started
        started.stop()


def worker_command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, script, "--worker", *arguments]


def run_worker(command: list[str]) -> None:
    subprocess.run(command, env=_environment(), check=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def mpirun(script: str, form: Path) -> list[str]:
    mpirun = Path(sys.executable).with_name("mpirun")
    options = ["-n", str(REPLICAS), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    return [os.fspath(mpirun), *options, *worker_command(script, "mpi", "--form", os.fspath(form))]


def _gloo_seconds() -> float:
    arguments = worker_command(__file__, "torch")[1:]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={REPLICAS}", "--standalone"]
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    )
    return _answer(done.stdout.splitlines())["seconds"]


def _share_of_small_operators(form: Path, own_nodes: set[str]) -> float:
    """Return the share of a step on one replica that is neither the network nor normalization."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = os.fspath(form.with_suffix(".profile"))
    session = onnxruntime.InferenceSession(form, options, providers=["CPUExecutionProvider"])
    for _ in range(STEPS_PER_ROUND):
        session.run(None, {resnet50.INPUT: _images(0)})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    total = small = 0.0
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total += event["dur"]
            if _is_small(event, own_nodes):
                small += event["dur"]
    return small / total


def _is_small(event: dict[str, Any], own_nodes: set[str]) -> bool:
    operator = event["args"]["op_name"]
    name = event["name"].removesuffix("_kernel_time")
    return (
        not (operator in ("BatchNormalization", "Conv") or operator.startswith("Reorder"))
        and name not in own_nodes
    )


def _measure(rounds: int, form: Path) -> tuple[dict[str, list[float]], list[float], float]:
    """Return seconds a step by contender and round, those in AllReduce, and those of one call."""
    seconds: dict[str, list[float]] = {}
    all_reduce: list[float] = []
    with ExitStack() as stack:
        mpi = stack.enter_context(contender(mpirun(__file__, form)))
        tensorflow = stack.enter_context(contender(worker_command(__file__, "tensorflow")))
        workers = {
            SYNCHRONIZED: mpi,
            TENSORFLOW: tensorflow,
            UNSYNCHRONIZED: mpi,
            ALONE: mpi,
            KERNELS_ALONE: mpi,
        }
        for number in range(rounds + 1):
            for name, worker in workers.items():
                answer = worker.ask(name)
                if number > 0:
                    seconds.setdefault(name, []).append(answer["seconds"])
                if number > 0 and name == SYNCHRONIZED:
                    all_reduce.append(answer["all_reduce"])
        call = mpi.ask("AllReduce")["seconds"]
    return seconds, all_reduce, call


def _print_steps(seconds: dict[str, list[float]]) -> bool:
    print(f"ResNet-50, {IMAGE_SIZE}x{IMAGE_SIZE}, {SAMPLES} samples a replica: ms a step, median")
    for name, values in seconds.items():
        print(f"  {name:50s}{1e3 * statistics.median(values):9.1f}")
    print(f"{'ratio':64s}{'is':>6s}{'bound':>8s}")
    held = True
    for name, peer, bound in BOUNDS:
        pairs = zip(seconds[name], seconds[peer], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        held &= ratio <= bound
        missed = "" if ratio <= bound else "!"
        print(f"  {name + ' / ' + peer:61s}{ratio:6.2f}{missed:1s}{bound:8.2f}")
    return held


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    form = syncbn_convert.convert(model, verify=False)
    assert isinstance(form, onnx.ModelProto)
    return form


def benchmark(rounds: int) -> bool:
    """Measure and print everything; return whether all bounds hold."""
    model = resnet50.build(image_size=IMAGE_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        form = Path(folder) / "form.onnx"
        onnx.save(_converted(model), form)
        seconds, all_reduce, mpi = _measure(rounds, form)
        small = _share_of_small_operators(form, {node.name for node in model.graph.node})
    held = _print_steps(seconds)
    share = statistics.median(all_reduce) / statistics.median(seconds[SYNCHRONIZED])
    threads = max(on_threads(REPLICAS, _seconds_per_all_reduce))
    print(f"Shares of the training form's step{'%':>40s}")
    print(f"  {'AllReduce, 2 replicas, waiting included':63s}{100 * share:9.1f}")
    print(f"  {'shapes, sums and moving statistics, 1 replica':63s}{100 * small:9.1f}")
    print(f"One AllReduce of {2 * CHANNELS + 1} float64, 2 replicas{'us':>37s}")
    for name, value in (("MPI", mpi), ("threads", threads), ("gloo", _gloo_seconds())):
        print(f"  {name:63s}{1e6 * value:9.1f}")
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", choices=["mpi", "tensorflow", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--form", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "mpi":
        _MpiWorker(arguments.form).run()
    elif arguments.worker == "tensorflow":
        _tensorflow_worker()
    elif arguments.worker == "torch":
        _torch_worker()
    else:
        return 0 if benchmark(arguments.rounds) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
