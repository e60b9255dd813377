"""Time and memory of `syncbn-convert` as whole processes, held against bounds.

Run `python benchmarks/convert.py`; it exits with 1 if a bound is missed.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONVERT_PAIRS = (100, 1_000, 10_000)
FOLD_PAIRS = 3_000
CHANNELS = 8
WEIGHTS = 10
WEIGHT_SIZE = 8_192

MAX_CONVERT_SECONDS = 15.0
MAX_PER_NODE_RATIO = 1.3
MAX_FOLD_SECONDS = 10.0
MAX_EXTERNAL_DATA_MB = 600.0
MAX_HELP_SECONDS = 0.5

console = Console(width=80, highlight=False)


@dataclasses.dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: Wall time of the process.
        cpu_seconds: Processor time of the process and its children.
        peak_mb: Largest resident set of the process and its children, in 10^6 bytes.
        own_seconds: What the tool reports as its own wall time; 0 where it reports none.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    own_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Bound:
    """A measured value and what it must stay below."""

    what: str
    value: float
    limit: float

    @property
    def kept(self) -> bool:
        """Whether the value is below its limit."""
        return self.value < self.limit


def make_chain(pairs: int, path: Path, channels: int = CHANNELS, kernel: int = 1) -> None:
    """Write a chain of `pairs` Conv + BatchNormalization."""
    import numpy as np
    import onnx
    import onnx_ir as ir

    generator = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["n", channels, 4, 4])
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []

    def parameter(name: str, *shape: int) -> ir.Value:
        array = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        initializers.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return initializers[-1]

    y = x
    for index in range(pairs):
        weight = parameter(f"weight_{index}", channels, channels, kernel, kernel)
        pads = {"pads": [kernel // 2] * 4}
        conv = ir.node("Conv", [y, weight], pads, name=f"conv_{index}")
        parameters = [parameter(f"{role}_{index}", channels) for role in ("s", "b", "m", "v")]
        norm = ir.node(
            "BatchNormalization", [conv.outputs[0], *parameters], name=f"batchnorm_{index}"
        )
        nodes += [conv, norm]
        y = norm.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph(
        [x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="chain"
    )
    onnx.save(ir.to_proto(ir.Model(graph, ir_version=10)), path)


def make_external(path: Path, weights: int = WEIGHTS) -> None:
    """Write MatMul + BatchNormalization with normal values, 256 MiB a weight, as external data."""
    import numpy as np
    import onnx
    import onnx_ir as ir

    generator = np.random.default_rng(0)
    data = path.with_name(f"{path.name}.data")
    nbytes = WEIGHT_SIZE * WEIGHT_SIZE * 4
    with data.open("wb") as file:
        for _ in range(weights):
            generator.standard_normal((WEIGHT_SIZE, WEIGHT_SIZE), np.float32).tofile(file)
        os.fsync(file.fileno())
    x = ir.val("x", ir.DataType.FLOAT, ["n", WEIGHT_SIZE])
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    y = x
    for index in range(weights):
        tensor = ir.ExternalTensor(
            data.name,
            index * nbytes,
            nbytes,
            ir.DataType.FLOAT,
            shape=ir.Shape([WEIGHT_SIZE, WEIGHT_SIZE]),
            name=f"weight_{index}",
        )
        weight = ir.val(tensor.name, const_value=tensor)
        matmul = ir.node("MatMul", [y, weight], name=f"matmul_{index}")
        parameters = [
            ir.val(f"{role}_{index}", const_value=ir.tensor(values, name=f"{role}_{index}"))
            for role in ("s", "b", "m", "v")
            for values in [generator.uniform(0.5, 1.5, WEIGHT_SIZE).astype(np.float32)]
        ]
        norm = ir.node(
            "BatchNormalization", [matmul.outputs[0], *parameters], name=f"batchnorm_{index}"
        )
        nodes += [matmul, norm]
        initializers += [weight, *parameters]
        y = norm.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph(
        [x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="external"
    )
    onnx.save(ir.to_proto(ir.Model(graph, ir_version=10)), path)


def in_child(make: Callable[..., None], *arguments: object) -> None:
    """Call `make` in a process of its own: a child's peak starts at the size of its parent."""
    child = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{make.__name__} failed")


def run(command: Sequence[str]) -> Run:
    """Run a command to its end and measure it; Python may keep byte code, as installers do."""
    environment = {key: os.environ[key] for key in os.environ if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def run_tool(*arguments: str | Path) -> Run:
    """Run `syncbn-convert`, with the interpreter that runs this file."""
    return run([sys.executable, "-m", "syncbn_convert", *map(str, arguments)])


def rewrite(command: str, model: Path, output: Path, *flags: str) -> Run:
    """Run `convert` or `fold` and add the time that it reports itself."""
    report = output.with_suffix(".json")
    measured = run_tool(
        command, model, "-o", output, "--force", "--quiet", f"--json={report}", *flags
    )
    own_seconds = json.loads(report.read_text(encoding="utf-8"))["seconds"]
    return dataclasses.replace(measured, own_seconds=own_seconds)


def median(runs: Sequence[Run]) -> Run:
    """Return the median of each column."""
    columns = zip(*map(dataclasses.astuple, runs), strict=True)
    return Run(*map(statistics.median, columns))


def table(title: str, *columns: str, rows: Sequence[Sequence[str]]) -> None:
    result = Table(title=title, title_justify="left", box=None)
    for index, column in enumerate(columns):
        result.add_column(column, justify="right" if index else "left")
    for row in rows:
        result.add_row(*row)
    console.print(result, "")


def rewrite_row(name: str, measured: Run, nodes: int) -> list[str]:
    return [
        name,
        f"{measured.seconds:.2f}",
        f"{measured.cpu_seconds:.2f}",
        f"{measured.own_seconds:.2f}",
        f"{measured.own_seconds / nodes * 1e6:.0f}",
        f"{measured.peak_mb:.0f}",
    ]


def measure_chains(folder: Path) -> list[Bound]:
    """Convert and fold chains of growing length."""
    rows: list[list[str]] = []
    per_pair: dict[int, float] = {}
    bounds: list[Bound] = []
    for pairs in CONVERT_PAIRS:
        model = folder / f"chain_{pairs}.onnx"
        in_child(make_chain, pairs, model)
        output = model.with_suffix(".sync.onnx")
        measured = median([rewrite("convert", model, output, "--no-verify") for _ in range(3)])
        rows.append(rewrite_row(f"convert {pairs:,} pairs", measured, 2 * pairs))
        per_pair[pairs] = measured.own_seconds / pairs
    middle, largest = CONVERT_PAIRS[-2:]
    bounds.append(Bound(f"convert {largest:,} pairs, s", measured.seconds, MAX_CONVERT_SECONDS))
    ratio = per_pair[largest] / per_pair[middle]
    bounds.append(Bound(f"own time per node, {largest:,} to {middle:,}", ratio, MAX_PER_NODE_RATIO))
    model, output = folder / "fold.onnx", folder / "fold.sync.onnx"
    in_child(make_chain, FOLD_PAIRS, model)
    rewrite("convert", model, output, "--no-verify")
    deployed = folder / "fold.deploy.onnx"
    measured = median([rewrite("fold", output, deployed, "--no-verify") for _ in range(3)])
    rows.append(rewrite_row(f"fold {FOLD_PAIRS:,} pairs", measured, 2 * FOLD_PAIRS))
    bounds.append(Bound(f"fold {FOLD_PAIRS:,} pairs, s", measured.seconds, MAX_FOLD_SECONDS))
    table(
        "Conv + BatchNormalization, --no-verify, median of three",
        "",
        "process s",
        "cpu s",
        "own s",
        "own us/node",
        "peak MB",
        rows=rows,
    )
    return bounds


def measure_verification(folder: Path) -> None:
    """Show what verification costs on the shortest chain."""
    pairs = CONVERT_PAIRS[0]
    model, output = folder / f"chain_{pairs}.onnx", folder / "verified.onnx"
    without = median([rewrite("convert", model, output, "--no-verify") for _ in range(3)])
    verified = median([rewrite("convert", model, output) for _ in range(3)])
    rows = [
        ["without", f"{without.seconds:.2f}", f"{without.own_seconds:.2f}"],
        ["with", f"{verified.seconds:.2f}", f"{verified.own_seconds:.2f}"],
        ["price", *(f"{after - before:.2f}" for before, after in _times(without, verified))],
    ]
    table(
        f"Verification, convert {pairs:,} pairs, median of three",
        "",
        "process s",
        "own s",
        rows=rows,
    )


def _times(before: Run, after: Run) -> list[tuple[float, float]]:
    return [(before.seconds, after.seconds), (before.own_seconds, after.own_seconds)]


def measure_external_data(folder: Path) -> list[Bound]:
    """Convert a model of 2.5 GiB beside a plain copy of its data."""
    model, output = folder / "external.onnx", folder / "external.sync.onnx"
    in_child(make_external, model)
    data = Path(f"{model}.data")
    copy = folder / "copy.data"
    copied = run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", str(data), str(copy)])
    copy.unlink()
    converted = rewrite("convert", model, output, "--no-verify")
    rows = [
        ["cp, sync", f"{copied.seconds:.2f}", f"{copied.peak_mb:.0f}"],
        ["convert --no-verify", f"{converted.seconds:.2f}", f"{converted.peak_mb:.0f}"],
    ]
    gib = data.stat().st_size / (1 << 30)
    table(f"{gib:.1f} GiB of external data, one run", "", "process s", "peak MB", rows=rows)
    return [Bound("external data, peak MB", converted.peak_mb, MAX_EXTERNAL_DATA_MB)]


def measure_help() -> list[Bound]:
    """Start the command line and do nothing."""
    measured = median([run_tool("--help") for _ in range(5)])
    return [Bound("--help, median of five, s", measured.seconds, MAX_HELP_SECONDS)]


def main() -> int:
    """Measure everything; return 1 if a bound was missed."""
    bounds = measure_help()
    with tempfile.TemporaryDirectory() as folder:
        bounds += measure_chains(Path(folder))
        measure_verification(Path(folder))
        bounds += measure_external_data(Path(folder))
    table(
        "Bounds",
        "",
        "measured",
        "below",
        "",
        rows=[
            [bound.what, f"{bound.value:.2f}", f"{bound.limit:g}", "" if bound.kept else "MISSED"]
            for bound in bounds
        ],
    )
    return 0 if all(bound.kept for bound in bounds) else 1


if __name__ == "__main__":
    sys.exit(main())
