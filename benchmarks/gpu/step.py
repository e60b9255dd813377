"""What one step of synchronized training costs on GPUs: ours, and torch's.

Two kinds of workers stay alive and take turns, row by row, on the same GPUs: one process a GPU
with torch (DistributedDataParallel with BatchNorm, with SyncBatchNorm, and the latter as one CUDA
graph), and one process with JAX (the training form, synchronized and not). Both train on data that
is on the GPUs already, with SGD and momentum. A time is the median over rounds of a few steps, of
which only the last is waited for. `float32` rows allow TF32 in convolutions and products on both
sides, as torch does by default for convolutions; `bfloat16` rows are torch's autocast, channels
last, and `--precision bfloat16`.

    python benchmarks/gpu/step.py                        every row, bounds, exit 1 if one is missed
    python benchmarks/gpu/step.py --rows 32x224:bfloat16,8x64:float32
    python benchmarks/gpu/step.py --models models.npz    Keras' networks too (see `skeletons.py`)
    python benchmarks/gpu/step.py --cpu --rows 2x32:float32    our part alone, on CPU devices

It needs JAX, torch, torchvision, onnx, onnx-ir, onnxruntime and safetensors. Where cyclopts is not
installed, the options of this package are plain dataclasses: no command line is used here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
ROWS = "128x224:bfloat16,128x224:float32,32x224:bfloat16,32x224:float32,8x64:float32,4x224:bfloat16"
ROUNDS, STEPS = 20, 4
WARM = 12
RATE = 1e-3
COMMAND_BUFFERS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,COLLECTIVES"


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        model: `resnet50`, `mobilenet_v2` or `inception_v3`.
        batch: Samples a GPU.
        size: Height and width.
        precision: `float32` or `bfloat16`.
    """

    model: str
    batch: int
    size: int
    precision: str

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.model} {self.batch}x{self.size} {self.precision}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=ROWS, help="of ResNet-50: BATCHxSIZE:PRECISION,...")
    parser.add_argument("--models", type=Path, help="networks of Keras, made by skeletons.py")
    parser.add_argument("--gpus", type=int, help="how many; by default all")
    parser.add_argument("--cpu", action="store_true", help="our part alone, on two CPU devices")
    parser.add_argument("--no-command-buffers", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    parser.add_argument("--worker", choices=["torch", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "torch":
        return torch_worker()
    if options.worker == "ours":
        return our_worker(options)
    rows = [_row("resnet50", text) for text in options.rows.split(",")]
    if options.models is not None:
        rows += [Row(name, 32, 224, "float32") for name in ("mobilenet_v2", "inception_v3")]
    return compare(rows, options)


def _row(model: str, text: str) -> Row:
    shape, precision = text.split(":")
    batch, size = shape.split("x")
    return Row(model, int(batch), int(size), precision)


def compare(rows: list[Row], options: argparse.Namespace) -> int:
    gpus = 2 if options.cpu else options.gpus or _count_gpus()
    theirs = [] if options.cpu else [_start_torch(rank, gpus) for rank in range(gpus)]
    ours = _start_ours(options, gpus)
    measured: dict[str, dict[str, Any]] = {}
    try:
        for row in rows:
            found: dict[str, Any] = {}
            for line in [_ask(theirs, row), _ask([ours], row)]:
                found.update(line)
            measured[row.name] = found
            print(f"{row.name}: {json.dumps(found)}", flush=True)
        scaling = {} if options.cpu else _ask([ours], Row("scaling", 128, 224, "bfloat16"))
    finally:
        for worker in [*theirs, ours]:
            assert worker.stdin is not None
            worker.stdin.close()
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:  # torch waits for graphs that hold its communicator
                worker.kill()
    print()
    _print_table(measured)
    if scaling:
        print(f"\nimages per second and GPU on {gpus} GPUs over one: {scaling['scaling']:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": measured, **scaling}, indent=2))
    missed = [] if options.cpu else list(_missed(measured, scaling))
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


def _count_gpus() -> int:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


_PORT: list[int] = []


def _start_torch(rank: int, count: int) -> subprocess.Popen[str]:
    if not _PORT:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            _PORT.append(found.getsockname()[1])
    return _start(
        ["--worker", "torch"],
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(_PORT[0]),
        TORCH_NCCL_ASYNC_ERROR_HANDLING="0",
    )


def _start_ours(options: argparse.Namespace, count: int) -> subprocess.Popen[str]:
    flags = os.environ.get("XLA_FLAGS", "")
    if options.cpu:
        flags += f" --xla_force_host_platform_device_count={count}"
    elif not options.no_command_buffers:
        flags += f" --xla_gpu_enable_command_buffer={COMMAND_BUFFERS}"
    arguments = ["--worker", "ours", "--gpus", str(count)]
    if options.models is not None:
        arguments += ["--models", str(options.models)]
    platform = {"JAX_PLATFORMS": "cpu"} if options.cpu else {}
    return _start(
        arguments, XLA_FLAGS=flags.strip(), XLA_PYTHON_CLIENT_PREALLOCATE="false", **platform
    )


def _start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def _ask(workers: list[subprocess.Popen[str]], row: Row) -> dict[str, Any]:
    """Let workers measure a row; return what the first of them found."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(dataclasses.asdict(row)) + "\n")
        worker.stdin.flush()
    answers = [_answer(worker) for worker in workers]
    return answers[0] if answers else {}


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    raise SystemExit(f"a worker ended with {worker.wait()}; see what it printed")


_MARK = "measured: "


def _serve(measure: Callable[[Row], dict[str, Any]]) -> int:
    """Measure the rows that are asked for."""
    # what libraries print goes to stderr
    answers: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(_MARK + json.dumps(measure(Row(**json.loads(line)))) + "\n")
        answers.flush()
    return 0


def _median_ms(step: Callable[[], Any], wait: Callable[[Any], None]) -> float:
    quick = os.environ.get("JAX_PLATFORMS") == "cpu"
    warm, rounds, steps = (1, 1, 1) if quick else (WARM, ROUNDS, STEPS)
    for _ in range(warm):
        last = step()
    wait(last)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            last = step()
        wait(last)
        times.append((time.perf_counter() - start) / steps)
    return 1e3 * sorted(times)[len(times) // 2]


# torch


def torch_worker() -> int:
    import torch
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    try:
        return _serve(_measure_torch)
    finally:
        dist.destroy_process_group()


def _measure_torch(row: Row) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    for name, synchronized, graph in (
        ("torch DDP", False, False),
        ("torch DDP SyncBN", True, False),
        ("torch graph SyncBN", True, True),
    ):
        torch.cuda.reset_peak_memory_stats()
        try:
            step = _torch_step(row, synchronized=synchronized, graph=graph)
            found[name] = _median_ms(step, lambda _: torch.cuda.synchronize())
            found[f"{name} GiB"] = torch.cuda.max_memory_allocated() / 2**30
        except RuntimeError as error:
            found[f"{name} failed"] = str(error).splitlines()[0][:200]
        step = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    return found


def _torch_step(row: Row, *, synchronized: bool, graph: bool) -> Callable[[], Any]:
    import torch
    import torchvision

    device = torch.device("cuda", torch.cuda.current_device())
    given = {"aux_logits": False, "init_weights": False} if row.model == "inception_v3" else {}
    network = getattr(torchvision.models, row.model)(weights=None, **given).to(device)
    narrow = row.precision == "bfloat16"
    images = torch.randn(row.batch, 3, row.size, row.size, device=device)
    if narrow:
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (row.batch,), device=device)
    if synchronized:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):  # as capturing wants it
        network = torch.nn.parallel.DistributedDataParallel(
            network, device_ids=[device.index], gradient_as_bucket_view=True
        )
    torch.cuda.current_stream().wait_stream(aside)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, foreach=True)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=narrow, cache_enabled=not graph):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    if not graph:
        return step
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


# ours


def our_worker(options: argparse.Namespace) -> int:
    _without_command_line()
    bench = OurBench(options.models, options.gpus)
    return _serve(bench.measure)


def _without_command_line() -> None:
    """Let options be plain dataclasses where cyclopts is not installed."""
    try:
        import cyclopts as cyclopts
    except ImportError:
        module: Any = types.ModuleType("cyclopts")

        class Inert:
            def __init__(self, *_: Any, **__: Any) -> None:
                pass

            def __call__(self, decorated: Any) -> Any:
                return decorated

        module.Parameter = module.Group = Inert
        sys.modules["cyclopts"] = module


class OurBench:
    """Measures steps of training forms.

    Args:
        models: Networks of Keras; None for ResNet-50 alone.
        gpus: How many.
    """

    def __init__(self, models: Path | None, gpus: int) -> None:
        self._models = models
        self._gpus = gpus
        self._built: dict[tuple[str, int], Any] = {}

    def measure(self, row: Row) -> dict[str, Any]:
        """Return milliseconds a step, and what else is known of it."""
        if row.model == "scaling":
            return self._scaling(dataclasses.replace(row, model="resnet50"))
        found: dict[str, Any] = {}
        for name, synchronized in (("ours", True), ("ours unsynchronized", False)):
            found |= self._measured(row, name, self._gpus, synchronized=synchronized)
        if row.size < 128:
            found |= self._measured(row, "ours 8 steps a call", self._gpus, several=8)
        return found

    def _scaling(self, row: Row) -> dict[str, Any]:
        alone, together = (self._measured(row, "ours", count)["ours"] for count in (1, self._gpus))
        return {"scaling": alone / together, "one GPU": alone, "all GPUs": together}

    def _models_of(self, row: Row) -> Any:
        """Return the graphs of a step of a network."""
        from syncbn_convert.options.optimizers import Sgd
        from syncbn_convert.options.training import StepOptions
        from syncbn_convert.training.step_models import build

        key = (row.model, row.size)
        if key not in self._built:
            options = StepOptions(
                loss="softmax-cross-entropy", labels="label", optimizer=Sgd(momentum=0.9)
            )
            self._built = {key: build(self._network(row), options)}
        return self._built[key]

    def _network(self, row: Row) -> Any:
        import onnx_ir as ir

        if row.model == "resnet50":
            import resnet50

            return ir.from_proto(resnet50.build(image_size=row.size))
        import skeletons

        assert self._models is not None
        return ir.from_proto(skeletons.filled(self._models, row.model))

    def _measured(
        self, row: Row, name: str, count: int, *, synchronized: bool = True, several: int = 1
    ) -> dict[str, Any]:
        import jax
        import numpy as np
        from jax.sharding import Mesh

        from syncbn_convert.training.xla_step import graphs_of
        from syncbn_convert.xla.train_step import REPLICAS, Settings, TrainStep

        models = self._models_of(row)
        mesh = Mesh(np.array(jax.devices()[:count]), (REPLICAS,))
        precision = {"float32": "tf32", "bfloat16": "bfloat16"}[row.precision]
        settings = Settings(precision=precision, synchronized=synchronized)
        step = TrainStep(graphs_of(models), mesh, settings)
        state = [
            step.put(step.program.arrays(step.graphs.parameters)),
            step.put(models.update.initial_slots()),
            step.put(step.program.arrays(step.graphs.statistics)),
        ]
        fed = self._data(row, step, count, several)
        rate, number = np.float32(RATE), np.int64(1)
        with jax.enable_x64(True):
            arguments = (*state, step.frozen, *fed, rate, number)
            make = lambda: step.whole(weighted=False, steps=several)  # noqa: E731
            compiled, cold, cached = _compile_twice(make, arguments)

            def run() -> Any:
                *following, loss, _ = compiled(*state, step.frozen, *fed, rate, number)
                state[:] = following
                return loss

            milliseconds = _median_ms(run, lambda loss: jax.block_until_ready(loss)) / several
        text, memory = compiled.as_text(), compiled.memory_analysis()
        found = {name: milliseconds}
        if name == "ours":
            collectives = text.count(" all-reduce(") + text.count(" all-reduce-start(")
            needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            found |= {
                "collectives": collectives,
                "normalizations": len(step.program.synchronized_nodes),
                "compile s": cold,
                "compile s, cached": cached,
                "ours GiB": needed / 2**30,
            }
        return found

    def _data(self, row: Row, step: Any, count: int, several: int) -> tuple[Any, Any]:
        """Return a batch on the devices, or several, and weights that are not used."""
        import numpy as np

        random = np.random.default_rng(0)
        image, *_ = (name for name in step.inputs if name != "label")
        samples = row.batch * count
        shape = (samples, 3, row.size, row.size)
        if row.model != "resnet50":
            shape = (samples, row.size, row.size, 3)
        arrays: dict[str, Any] = {
            image: random.standard_normal(shape).astype(np.float32),
            "label": random.integers(0, 1000, samples),
        }
        weights = step.deal({"weights": np.ones(samples, np.float32)})["weights"]
        if several == 1:
            return step.deal(arrays), weights
        stacked = {name: np.stack([value] * several) for name, value in arrays.items()}
        return step.deal(stacked, stacked=True), weights


def _compile_twice(make: Callable[[], Any], arguments: Any) -> tuple[Any, float, float]:
    """Return the compiled step, and the seconds that it took without and with what is on disk."""
    import tempfile

    import jax

    from syncbn_convert.xla.compilation import compiled

    times = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for _ in range(2):
            jax.clear_caches()
            start = time.perf_counter()
            found = compiled(make(), arguments)
            times.append(time.perf_counter() - start)
    return found, times[0], times[1]


# results


def _print_table(measured: dict[str, dict[str, Any]]) -> None:
    for name, found in measured.items():
        print(name)
        for key, value in found.items():
            shown = f"{value:9.2f}" if isinstance(value, float) else f"{value!s:>9}"
            print(f"  {key:24}{shown}")
        theirs = found.get("torch DDP SyncBN")
        if theirs:
            print(f"  {'ours / torch DDP SyncBN':24}{found['ours'] / theirs:9.3f}")


def _missed(measured: dict[str, dict[str, Any]], scaling: dict[str, Any]) -> Any:
    for name, found in measured.items():
        ours = found["ours"]
        bounds = [("torch DDP SyncBN", 0.45 if name.endswith("128x224 float32") else 0.33)]
        if " 128x224 " in name or " 32x224 " in name:
            bounds.append(("torch graph SyncBN", 0.95))
        if " 128x224 " in name:
            bounds.append(("ours unsynchronized", 1.06))
        if " 32x224 " in name:
            bounds.append(("ours unsynchronized", 1.15))
        for other, bound in bounds:
            if other in found and not ours / found[other] <= bound:
                yield f"{name}: ours over {other} {ours / found[other]:.3f}, bound {bound}"
        if " 8x64 " in name and not min(ours, found.get("ours 8 steps a call", ours)) <= 7:
            yield f"{name}: {ours:.1f} ms, bound 7"
    if scaling and not scaling["scaling"] >= 0.93:
        yield f"scaling {scaling['scaling']:.3f}, bound 0.93"


if __name__ == "__main__":
    sys.exit(main())
