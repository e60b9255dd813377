"""Time and memory of `syncbn-convert fuse` beside ONNX Runtime's basic optimizer and `cp`.

Run `python benchmarks/fuse.py`; it exits with 1 if a bound is missed. Every figure is of a whole
process and the median of five, the tools taking turns; each run follows one of the same tool that
is not counted, so that none depends on the memory that another has left (a virtual machine may have
given it back to its host). `cp` is followed by `sync` of the copy, as `fuse` too returns only when
its output is on the disk. `cp` alone leaves its copy in memory as long as that has room: it is the
measure for 5 GiB, while for 2.5 GiB more than half of its time is what Python takes to load onnx
and onnx_ir; both are printed.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from convert import WEIGHTS, Bound, Run, in_child, make_chain, make_external, median, run, table

PAIRS = 3_000
CHANNELS = 64
SMALL_CHANNELS = 8
RUNS = 5

MAX_TO_OPTIMIZER = 1.0
MAX_TO_COPY = 1.5
MAX_PEAK_MB = 600.0

OPTIMIZER = """
import sys
import onnxruntime

options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = sys.argv[2]
if len(sys.argv) > 3:
    key = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{key}file_name", sys.argv[3])
    options.add_session_config_entry(f"{key}min_size_in_bytes", "1024")
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@dataclasses.dataclass
class Arena:
    """Where the tools take turns on one model."""

    model: Path
    output: Path

    def fuse(self, *flags: str) -> Run:
        """Run our tool."""
        command = [sys.executable, "-m", "syncbn_convert", "fuse", str(self.model), "-o"]
        return self._second([*command, str(self.output / "ours.onnx"), "--quiet", *flags])

    def optimize(self, *data: str) -> Run:
        """Run ONNX Runtime's optimizer."""
        command = [sys.executable, "-c", OPTIMIZER, str(self.model)]
        return self._second([*command, str(self.output / "basic.onnx"), *data])

    def copy(self, *, sync: bool) -> Run:
        """Copy the model's data."""
        script = 'cp "$1" "$2"' + (' && sync "$2"' if sync else "")
        data = f"{self.model}.data"
        return self._second(["sh", "-c", script, "sh", data, str(self.output / "copy")])

    def start(self) -> Run:
        """Load what any tool in Python loads to read a model."""
        return self._second([sys.executable, "-c", "import onnx, onnx_ir"])

    def _second(self, command: list[str]) -> Run:
        measured = [self._clean(run(command)) for _ in range(2)]
        return measured[1]

    def _clean(self, measured: Run) -> Run:
        shutil.rmtree(self.output)
        self.output.mkdir()
        return measured


def row(name: str, runs: list[Run]) -> list[str]:
    middle = median(runs)
    spread = f"{min(r.seconds for r in runs):.2f}-{max(r.seconds for r in runs):.2f}"
    return [name, f"{middle.seconds:.2f}", spread, f"{max(r.peak_mb for r in runs):.0f}"]


def seconds(runs: list[Run]) -> float:
    return statistics.median(measured.seconds for measured in runs)


def measure_chain(folder: Path, channels: int, kernel: int) -> tuple[float, float]:
    """Print the table of one chain; return our time relative to the optimizer's, and our peak."""
    model = folder / "chain.onnx"
    in_child(make_chain, PAIRS, model, channels, kernel)
    arena = Arena(model, folder / "output")
    arena.output.mkdir(exist_ok=True)
    ours, basic = [], []
    for _ in range(RUNS):
        ours.append(arena.fuse("--no-verify"))
        basic.append(arena.optimize())
    rows = [row("fuse --no-verify", ours), row("ONNX Runtime basic", basic)]
    if channels == SMALL_CHANNELS:
        rows.append(row("fuse, verified", [arena.fuse()]))
    size = model.stat().st_size / 1e6
    title = f"{PAIRS:,} pairs, {channels} channels, {size:.0f} MB"
    table(title, "", "s", "from-to", "peak MB", rows=rows)
    return seconds(ours) / seconds(basic), max(measured.peak_mb for measured in ours)


@dataclasses.dataclass
class External:
    """What was measured of a model with external data.

    Attributes:
        name: Its size.
        to_optimizer: Our time relative to that of ONNX Runtime's optimizer.
        to_synced_copy: Our time relative to that of `cp` and `sync`.
        to_copy: Our time relative to that of `cp`.
        peak_mb: Our peak memory.
    """

    name: str
    to_optimizer: float
    to_synced_copy: float
    to_copy: float
    peak_mb: float


def measure_external(folder: Path, weights: int) -> External:
    """Print the table of a model with external data."""
    model = folder / "external.onnx"
    in_child(make_external, model, weights)
    arena = Arena(model, folder / "output")
    arena.output.mkdir(exist_ok=True)
    ours, basic, synced, plain = [], [], [], []
    for _ in range(RUNS):
        synced.append(arena.copy(sync=True))
        ours.append(arena.fuse("--no-verify"))
        plain.append(arena.copy(sync=False))
        basic.append(arena.optimize("basic.data"))
    rows = [
        row("fuse --no-verify", ours),
        row("ONNX Runtime basic", basic),
        row("cp, sync", synced),
        row("cp", plain),
        row("import onnx, onnx_ir", [arena.start() for _ in range(RUNS)]),
        row("fuse, verified", [arena.fuse()]),
    ]
    name = f"{Path(f'{model}.data').stat().st_size / (1 << 30):.1f} GiB of external data"
    table(name, "", "s", "from-to", "peak MB", rows=rows)
    return External(
        name,
        to_optimizer=seconds(ours) / seconds(basic),
        to_synced_copy=seconds(ours) / seconds(synced),
        to_copy=seconds(ours) / seconds(plain),
        peak_mb=max(measured.peak_mb for measured in ours),
    )


def main() -> int:
    """Measure everything; return 1 if a bound was missed."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        small, _ = measure_chain(Path(name), SMALL_CHANNELS, 1)
        ratio, peak = measure_chain(Path(name), CHANNELS, 3)
        external = measure_external(Path(name), WEIGHTS)
        large = measure_external(Path(name), 2 * WEIGHTS)
    bounds = [
        Bound(f"{CHANNELS} channels, to ONNX Runtime", ratio, MAX_TO_OPTIMIZER),
        Bound(f"{CHANNELS} channels, peak MB", peak, MAX_PEAK_MB),
    ]
    for measured in (external, large):
        bounds += [
            Bound(f"{measured.name}, to ONNX Runtime", measured.to_optimizer, MAX_TO_OPTIMIZER),
            Bound(f"{measured.name}, to cp and sync", measured.to_synced_copy, MAX_TO_COPY),
            Bound(f"{measured.name}, peak MB", measured.peak_mb, MAX_PEAK_MB),
        ]
    bounds.append(Bound(f"{large.name}, to cp alone", large.to_copy, MAX_TO_COPY))
    rows = [
        [bound.what, f"{bound.value:.2f}", f"{bound.limit:g}", "" if bound.kept else "MISSED"]
        for bound in bounds
    ]
    rows.append([f"{SMALL_CHANNELS} channels, to ONNX Runtime", f"{small:.2f}", "none", ""])
    rows.append([f"{external.name}, to cp alone", f"{external.to_copy:.2f}", "none", ""])
    table("Bounds", "", "measured", "below", "", rows=rows)
    return 0 if all(bound.kept for bound in bounds) else 1


if __name__ == "__main__":
    sys.exit(main())
