"""Whatever stops the process, the output is absent, the old one, or the whole new one."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from syncbn_convert.training import checkpoint as checkpoints
from syncbn_convert.training.checkpoint import FILE
from tests.models import DIGITS

PAIRS, CHANNELS = 12, 64
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
MOMENTS, MANY_MOMENTS = (0.55, 0.8, 0.97), tuple(np.linspace(0.02, 1.05, 40))
DATA = DIGITS.with_name("digits_train.npz")


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
        assert code in (0, -kind if kind == signal.SIGKILL else 128 + kind)
        if kind == signal.SIGKILL:
            _wait_for_children_of_the_killed()
        state = _state(output)
        assert state in ({self.new} if code == 0 else {before, self.new})
        if kind == signal.SIGKILL:
            subprocess.run(_command(self.model, output), check=True)
            state = self.new
        hidden = [path for path in output.parent.iterdir() if path.name.startswith(".")]
        assert not hidden
        data = {f.name for f in output.parent.iterdir() if f != output}
        assert data == (_locations(output) if state else set())


def _locations(model: Path) -> set[str]:
    proto = onnx.load(model, load_external_data=False)
    entries = (entry for tensor in proto.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _wait_for_children_of_the_killed() -> None:
    """The system ends them, but not in the same instant."""
    time.sleep(0.3)


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


def _pair(scene: _Scene, folder: Path, delay: float, *, force: bool) -> None:
    """Start two runs of different models to one output; one wins whole."""
    other = folder / "other.onnx"
    shutil.copy(scene.model, other)
    if (data := scene.model.with_name(f"{scene.model.name}.data")).exists():
        shutil.copy(data, folder)
    proto = onnx.load(other, load_external_data=False)
    proto.producer_name = "other"
    onnx.save(proto, other)
    output = folder / "out.onnx"
    flags = ["--no-verify", *(["--force"] if force else [])]
    tool = [sys.executable, "-m", "syncbn_convert", "fuse"]
    runs = []
    for model in (scene.model, other):
        command = [*tool, str(model), "-o", str(output), "-q", *flags]
        runs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        time.sleep(delay)
    messages = [run.communicate(timeout=60)[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert 0 in codes
    assert set(codes) <= {0, 2}
    if not force:
        assert sorted(codes) == [0, 2]
    for code, message in zip(codes, messages, strict=True):
        assert (message == "") == (code == 0)
        assert code == 0 or "another process is writing it" in message or "exists" in message
    winner = onnx.load(output)  # with its weights, which are the same in both
    winner.producer_name = ""
    expected = onnx.load(scene.folder / "reference" / "fused.onnx")
    expected.producer_name = ""
    assert winner.graph.initializer == expected.graph.initializer
    left = {path.name for path in folder.iterdir() if path.name.startswith((".", "out"))}
    assert left == {"out.onnx", *_locations(output)}


@pytest.mark.parametrize("force", [False, True])
def test_two_runs_to_one_output(scene: _Scene, tmp_path: Path, force: bool) -> None:
    _pair(scene, tmp_path, 0.05, force=force)


@pytest.mark.sweep
@pytest.mark.timeout(1_200)
def test_many_pairs_to_one_output(scene: _Scene, tmp_path: Path) -> None:
    delays = random.Random(1)
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        _pair(scene, folder, delays.uniform(0, scene.seconds / 2), force=number % 2 == 1)


def _train(folder: Path) -> list[str]:
    flags = ["--loss", "softmax-cross-entropy", "--learning-rate", "0.01", "--epochs", "2"]
    keeping = ["--checkpoint", str(folder / "kept"), "--checkpoint-every", "3", "--resume"]
    untrained = str(DIGITS.with_name("digits_untrained.onnx"))
    command = [sys.executable, "-m", "syncbn_convert", "train", untrained, "--data", str(DATA)]
    output = ["-o", str(folder / "out.onnx"), "--force", "-q", "--no-verify"]
    return [*command, "--labels", "label", *flags, *keeping, *output]


def _kill_training(folder: Path, kind: signal.Signals, moment: float) -> None:
    process = subprocess.Popen(
        _train(folder), stderr=subprocess.PIPE, text=True, preexec_fn=_receive_interrupts
    )
    time.sleep(moment)
    process.send_signal(kind)
    process.communicate(timeout=60)
    if kind == signal.SIGKILL:
        _wait_for_children_of_the_killed()
    if (folder / "kept" / FILE).exists():
        assert checkpoints.load(folder / "kept") is not None
    if (folder / "out.onnx").exists():
        onnx.checker.check_model(folder / "out.onnx")
    if kind != signal.SIGKILL:
        names = {path.name for path in folder.rglob("*")}
        assert names <= {"kept", FILE, "out.onnx"}


@pytest.mark.parametrize(("kind", "moment"), [*zip(SIGNALS, (2.0, 2.5, 3.0), strict=True)])
def test_training_that_keeps_checkpoints(
    tmp_path: Path, kind: signal.Signals, moment: float
) -> None:
    _kill_training(tmp_path, kind, moment)


@pytest.mark.sweep
@pytest.mark.timeout(1_200)
def test_training_that_keeps_checkpoints_at_any_moment(tmp_path: Path) -> None:
    moments = random.Random(2)
    for number in range(33):
        _kill_training(tmp_path, SIGNALS[number % 3], moments.uniform(0.3, 4))
    subprocess.run(_train(tmp_path), check=True)
    assert {path.name for path in tmp_path.rglob("*")} == {"kept", FILE, "out.onnx"}


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
