"""Whatever stops the process, the output is absent, the old one, or the whole new one."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

PAIRS, CHANNELS = 12, 64
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
MOMENTS, MANY_MOMENTS = (0.55, 0.8, 0.97), tuple(np.linspace(0.02, 1.05, 40))


def _chain(path: Path, *, external: bool) -> None:
    generator = np.random.default_rng(0)

    def parameter(name: str, *shape: int) -> ir.Value:
        array = generator.uniform(0.5, 1.5, shape).astype(np.float32) / 100
        return ir.val(name, const_value=ir.tensor(array, name=name))

    x = y = ir.val("x", ir.DataType.FLOAT, ["n", CHANNELS, 8, 8])
    nodes: list[ir.Node] = []
    for index in range(PAIRS):
        weight = parameter(f"w{index}", CHANNELS, CHANNELS, 3, 3)
        parameters = [parameter(f"{role}{index}", CHANNELS) for role in "sbmv"]
        nodes.append(ir.node("Conv", [y, weight], {"pads": [1] * 4}, name=f"conv{index}"))
        nodes.append(ir.node("BatchNormalization", [nodes[-1].outputs[0], *parameters]))
        y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    values = [value for node in nodes for value in node.inputs if value and value.const_value]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=values, opset_imports={"": 17}, name="c")
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    onnx.save(proto, path, save_as_external_data=external, location=f"{path.name}.data")


def _command(model: Path, output: Path) -> list[str]:
    tool = [sys.executable, "-m", "syncbn_convert", "fuse"]
    return [*tool, str(model), "-o", str(output), "--force", "--quiet"]


def _state(output: Path) -> str:
    """Return a digest of the model and of the data that it refers to; empty if it is absent."""
    if not output.exists():
        return ""
    proto = onnx.load(output)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


class _Scene:
    """A model, what fusing it gives, and how long that takes."""

    def __init__(self, folder: Path, *, external: bool) -> None:
        self.folder = folder
        self.model = folder / "model.onnx"
        _chain(self.model, external=external)
        fused = folder / "reference" / "fused.onnx"
        fused.parent.mkdir()
        start = time.perf_counter()
        subprocess.run(_command(self.model, fused), check=True)
        self.seconds = time.perf_counter() - start
        self.new = _state(fused)

    def output(self, *, existing: bool) -> tuple[Path, str]:
        """Return a fresh output, and the digest of what stands there before."""
        folder = self.folder / f"run{time.monotonic_ns()}"
        folder.mkdir()
        output = folder / "fused.onnx"
        if existing:
            proto = onnx.load(self.model)
            onnx.save(proto, output, save_as_external_data=True, location=f"{output.name}.data")
        return output, _state(output)

    def interrupt(self, kind: signal.Signals, moment: float, *, existing: bool) -> None:
        """Stop a run at a part of its time and look at what stands there."""
        output, before = self.output(existing=existing)
        process = subprocess.Popen(
            _command(self.model, output), stderr=subprocess.DEVNULL, preexec_fn=_receive_interrupts
        )
        time.sleep(moment * self.seconds)
        process.send_signal(kind)
        code = process.wait(timeout=60)
        assert _state(output) in ({self.new} if code == 0 else {before, self.new})
        if kind != signal.SIGKILL:
            hidden = [path for path in output.parent.iterdir() if path.name.startswith(".")]
            assert not hidden


def _receive_interrupts() -> None:
    """Undo what a shell does to jobs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", params=[False, True], ids=["inside", "external"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Scene:
    return _Scene(tmp_path_factory.mktemp("scene"), external=request.param)


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("existing", [False, True], ids=["absent", "existing"])
def test_signals(scene: _Scene, kind: signal.Signals, existing: bool) -> None:
    moment = MOMENTS[(SIGNALS.index(kind) + existing) % len(MOMENTS)]
    scene.interrupt(kind, moment, existing=existing)


@pytest.mark.sweep
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("existing", [False, True], ids=["absent", "existing"])
def test_signals_at_any_moment(scene: _Scene, kind: signal.Signals, existing: bool) -> None:
    for moment in MANY_MOMENTS:
        scene.interrupt(kind, float(moment), existing=existing)


@pytest.mark.parametrize("kib", [4, 64, 1_100])
def test_disk_full(scene: _Scene, kib: int) -> None:
    output, before = scene.output(existing=True)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, kib << 10))

    done = subprocess.run(
        _command(scene.model, output), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert _state(output) == before != scene.new
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "fused.onnx",
        "fused.onnx.data",
    ]


def test_a_whole_run_gives_the_new_model(scene: _Scene) -> None:
    output, before = scene.output(existing=True)
    subprocess.run(_command(scene.model, output), check=True)
    assert _state(output) == scene.new != before
    assert not os.path.exists(output.parent / "fused.onnx.data")
