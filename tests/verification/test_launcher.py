from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from syncbn_convert.errors import ModelFileError, UsageError, VerificationError
from syncbn_convert.verification import (
    VerifyOptions,
    child_process,
    launcher,
    run_model_file,
    verify_files,
)

from .samples import CONV_NET, GEMM_NET, parse, save, scaled

CRASHING = """
<ir_version: 8, opset_import: ["" : 9]>
g (float[N,3,8,8] x) => (float[N,3,8,8] y) <float[3] s, float[3] b, float[3] m, float[3] v> {
  y, , , , = BatchNormalization(x, s, b, m, v)
}
"""


def crashing_model() -> onnx.ModelProto:
    model = parse(CRASHING.replace("y, , , , =", "y ="))
    model.graph.node[0].output.extend(["", "", "", ""])
    onnx.checker.check_model(model, full_check=True)
    return model


def test_files_are_compared_in_a_child_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = parse(CONV_NET)
    first, second = save(tmp_path, a=model, b=scaled(model, "w1", 1.001))
    report = verify_files(first, second)
    assert not report.equal
    assert report.first_difference is not None
    assert report.first_difference.startswith("node 'conv1' (Conv), output 'c1': 1.0e-03")
    assert report.outputs[0].name == "y"
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_external_data_is_found_also_where_the_first_differing_node_is_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = parse(CONV_NET)
    for name, factor in (("a", 1.0), ("b", 1.001)):
        onnx.save(
            scaled(model, "w2", factor),
            folder / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=0,
        )
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.iterdir())
    report = verify_files(Path("models/a.onnx"), Path("models/b.onnx"))
    assert report.first_difference == "node 'conv2' (Conv), output 'y': 1.0e-03 relative"
    assert sorted(folder.iterdir()) == before


def test_crash_of_onnx_runtime_is_an_error_that_names_signal_and_model(tmp_path: Path) -> None:
    reference, candidate = save(tmp_path, a=parse(GEMM_NET), b=crashing_model())
    with pytest.raises(
        VerificationError, match=r"b\.onnx: .*ended by SIG\w+ while running it"
    ) as e:
        run_model_file(candidate)
    assert "\n" not in str(e.value)
    assert run_model_file(reference, VerifyOptions(seeds=1))


def test_report_stands_where_only_the_search_for_the_node_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from syncbn_convert.verification import child, comparison;"
        "comparison.first_differing_node = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL);"
        "child.serve()"
    )
    monkeypatch.setattr(child_process, "COMMAND", [sys.executable, "-c", script])
    model = parse(GEMM_NET)
    first, second = save(tmp_path, a=model, b=scaled(model, "w", 1.01))
    report = verify_files(first, second)
    assert not report.equal
    assert report.first_difference is not None
    assert report.first_difference.startswith("output 'y': ")


def test_crash_of_the_float64_twin_leads_to_a_comparison_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from syncbn_convert.verification import child, noise;"
        "noise.twin_noise = lambda *a: os.kill(os.getpid(), signal.SIGSEGV);"
        "child.serve()"
    )
    monkeypatch.setattr(child_process, "COMMAND", [sys.executable, "-c", script])
    model = parse(GEMM_NET)
    (path,) = save(tmp_path, a=model)
    report = verify_files(path, path)
    assert report.equal
    assert report.notes == []


def test_time_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(child_process, "COMMAND", command)
    (path,) = save(tmp_path, a=parse(GEMM_NET))
    started = time.monotonic()
    with pytest.raises(VerificationError, match=r"not done within 0\.5 s .* --input-shape"):
        verify_files(path, path, VerifyOptions(timeout=0.5))
    assert time.monotonic() - started < 20


def test_bug_in_the_child_is_no_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "print('noise'); raise KeyError('broken')"]
    monkeypatch.setattr(child_process, "COMMAND", command)
    (path,) = save(tmp_path, a=parse(GEMM_NET))
    with pytest.raises(RuntimeError, match="KeyError: 'broken'"):
        verify_files(path, path)


def test_errors_keep_their_class(tmp_path: Path) -> None:
    (path,) = save(tmp_path, a=parse(GEMM_NET))
    with pytest.raises(ModelFileError, match=r"missing\.onnx: no such file"):
        verify_files(path, tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match="another rank"):
        verify_files(path, path, VerifyOptions(input_shapes={"x": [1]}))


def test_files_in_the_working_directory_do_not_shadow_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    (path,) = save(tmp_path, a=parse(GEMM_NET))
    monkeypatch.chdir(tmp_path)
    assert verify_files(path, path, VerifyOptions(seeds=1)).equal


def test_interrupt_ends_the_child(tmp_path: Path) -> None:
    """The parent restores its handler: a shell's background job starts with SIGINT ignored."""
    (path,) = save(tmp_path, a=parse(GEMM_NET))
    pid_file = tmp_path / "pid"
    waits = (
        f"import os, time, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()));"
        "time.sleep(60)"
    )
    script = (
        "import signal, sys; from pathlib import Path;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from syncbn_convert.verification import child_process, launcher;"
        f"child_process.COMMAND = [sys.executable, '-c', {waits!r}];"
        f"launcher.verify_files(Path({str(path)!r}), Path({str(path)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(pid_file.read_text())
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_one_child_answers_all_and_another_follows_one_that_crashed(tmp_path: Path) -> None:
    good, bad = save(tmp_path, a=parse(GEMM_NET), b=crashing_model())
    pids = []
    for path in (good, good, bad, good):
        with contextlib.suppress(VerificationError):
            run_model_file(path, VerifyOptions(seeds=1))
        pids.append(launcher.child_id())
    assert pids[0] == pids[1] != pids[3] is not None
    assert pids[2] is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    endless = parse("""
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y) {
  n = Constant <value = int64 {9223372036854775807}> ()
  go = Constant <value = bool {1}> ()
  y = Loop (n, go, x) <body = b (int64 i, bool c, float[N,2] s) => (bool d, float[N,2] t) {
    d = Identity(c)  t = Relu(s)
  }>
}""")
    (path,) = save(tmp_path, a=endless)
    script = (
        "import sys; from pathlib import Path; from syncbn_convert.verification import launcher;"
        "launcher.prepare(); print(launcher.child_id(), flush=True);"
        f"launcher.verify_files(Path({str(path)!r}), Path({str(path)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        _wait_until(lambda: _processor_seconds(child) > 3)
        parent.kill()
    _wait_until(lambda: not Path(f"/proc/{child}").exists())


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_run_model_file_returns_outputs_of_every_run(tmp_path: Path) -> None:
    model = parse(GEMM_NET)
    (path,) = save(tmp_path, a=model)
    runs = run_model_file(path, VerifyOptions(seeds=2))
    assert [run["y"].shape for run in runs] == [(2, 8), (2, 8), (5, 8)]
    assert runs[0]["y"].dtype == np.float32
    again = run_model_file(path, VerifyOptions(seeds=1, seed=1))
    assert np.array_equal(again[0]["y"], runs[1]["y"])


def test_run_model_file_takes_inputs_like_another_model(tmp_path: Path) -> None:
    gemm = parse(GEMM_NET.replace("[N,64] x", "[3,64] x"))
    other = parse("""
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,64] x) => (float[N,64] y, bfloat16[N,64] z) { y = Neg(x)  z = Cast<to = 16>(x) }""")
    paths = save(tmp_path, gemm=gemm, other=other, dynamic=parse(GEMM_NET))
    runs = run_model_file(paths[1], VerifyOptions(seeds=1), like=paths[0])
    assert [run["y"].shape for run in runs] == [(3, 64)]
    assert runs[0]["z"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(runs[0]["z"], (-runs[0]["y"]).astype(ml_dtypes.bfloat16))
    with pytest.raises(VerificationError, match=r"gemm\.onnx: does not run on x\[2,64\], seed 0"):
        run_model_file(paths[0], like=paths[2])
