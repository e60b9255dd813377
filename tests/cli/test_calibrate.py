from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from syncbn_convert.cli import progress
from syncbn_convert.cli.showing import Showing
from syncbn_convert.form import moving_statistics
from syncbn_convert.options.importing import ReadingOptions
from tests.models import DIGITS

from .conftest import Run, Terminal

DATA = str(DIGITS.with_name("digits_train.npz"))


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _op_types(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_table(digits: Path, run: Run) -> None:
    output = digits.with_name("out.onnx")
    finished = run(
        *["calibrate", str(digits), "--data", DATA, "-o", str(output), "--replicas", "2"],
        *[
            "--batch-size",
            "100",
            "--batches",
            "3",
            "--warmup",
            "1",
            "--input-shape",
            "image:2,8,8,1",
        ],
    )
    assert finished.exit_code == 0, finished.stderr
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines[1:6]]
    assert {row[0] for row in rows} == {
        *("stem_bn", "depthwise_bn", "residual_bn", "down_bn", "hidden_bn")
    }
    text = " ".join(lines)
    assert "precise statistics of 300 samples in 3 batches, engine threads, replicas 2" in text
    assert "verified" in lines
    assert "not verified" not in text
    assert _files(digits.parent) == ["digits.onnx", "out.onnx"]
    assert "BatchNormalization" in _op_types(output)


def test_json_and_statistics(digits: Path, run: Run) -> None:
    output, saved = digits.with_name("out.onnx"), digits.with_name("s.safetensors")
    arguments = ["calibrate", str(digits), "--data", DATA, "--batch-size", "500"]
    finished = run(
        *arguments, "-o", str(output), "--statistics-out", str(saved), "--json", "--no-verify"
    )
    assert finished.exit_code == 0, finished.stderr
    content = json.loads(finished.stdout)
    assert content.pop("seconds") > 0
    layers = content.pop("layers")
    assert content == {
        "command": "calibrate",
        "input": str(digits),
        "output": str(output),
        "statistics": str(saved),
        "method": "precise",
        "engine": "local",
        "replicas": 1,
        "batches": 3,
        "samples": 1437,
        "verified": False,
        "notes": [],
    }
    assert len(layers) == 5
    assert set(layers[0]) == {"name", "channels", "mean_shift", "variance_ratio", "module"}
    found = moving_statistics.load(saved)
    assert found.provenance["samples"] == 1437
    model = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    for name, values in found.tensors.items():
        np.testing.assert_array_equal(values, model[name])
        assert np.any(values != 0)


def test_a_training_form_stays_one_unless_folded(digits: Path, run: Run) -> None:
    form = digits.with_name("form.onnx")
    assert run(str(digits), "-o", str(form), "--no-verify").exit_code == 0
    for name, flags, expected in (
        ("kept.onnx", [], "SyncBatchNormalization"),
        ("folded.onnx", ["--fold"], "BatchNormalization"),
    ):
        output = digits.with_name(name)
        arguments = ["calibrate", str(form), "--data", DATA, "-o", str(output), "--batches", "2"]
        finished = run(*arguments, *flags)
        assert finished.exit_code == 0, finished.stderr
        assert "\nverified\n" in finished.stdout
        found = _op_types(output) & {"SyncBatchNormalization", "BatchNormalization"}
        assert found == {expected}


def test_statistics_alone_write_no_model(digits: Path, run: Run) -> None:
    saved = digits.with_name("s.safetensors")
    arguments = ["calibrate", str(digits), "--data", DATA, "--batches", "2"]
    finished = run(*arguments, "--method", "moving", "--statistics-out", str(saved))
    assert finished.exit_code == 0, finished.stderr
    assert "moving statistics of 64 samples in 2 batches" in finished.stdout
    assert "verified" not in finished.stdout
    assert _files(digits.parent) == ["digits.onnx", "s.safetensors"]


def test_quiet_prints_nothing(digits: Path, run: Run) -> None:
    saved = digits.with_name("s.safetensors")
    arguments = ["calibrate", str(digits), "--data", DATA, "--batches", "1", "-q"]
    finished = run(*arguments, "--statistics-out", str(saved))
    assert (finished.exit_code, finished.stdout, finished.stderr) == (0, "", "")
    assert saved.exists()


def test_verbose_logs_batches(digits: Path, run: Run) -> None:
    saved = digits.with_name("s.safetensors")
    arguments = ["calibrate", str(digits), "--data", DATA, "--batches", "2", "-v"]
    finished = run(*arguments, "--statistics-out", str(saved))
    assert f"{digits}: batch 2 of 2, 64 samples\n" in finished.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to write: give -o FILE, --statistics-out FILE or both"),
        (["-o", "o.onnx", "--replicas", "0"], "replicas 0"),
        (["-o", "o.onnx", "--method", "exact"], "--method"),
        (["-o", "o.onnx", "--replicas", "2", "--engine", "local"], "leave --replicas out"),
        (["-o", "o.onnx", "--data", "absent.npz"], "absent.npz: cannot be read"),
        (["-o", "o.onnx", "--data", "absent:function"], "absent:function' is neither a file nor"),
        (["-o", "absent/o.onnx"], "choose a folder that exists"),
    ],
)
def test_usage_errors(flags: list[str], message: str, digits: Path, run: Run) -> None:
    finished = run("calibrate", str(digits), "--data", DATA, *flags)
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert message in finished.stderr
    assert _files(digits.parent) == ["digits.onnx"]


def test_outputs_are_checked_before_the_work(digits: Path, run: Run) -> None:
    saved = digits.with_name("s.safetensors")
    saved.write_text("precious")
    finished = run("calibrate", str(digits), "--data", "absent.npz", "--statistics-out", str(saved))
    assert finished.stderr == f"error: {saved}: exists; pass --force to replace it\n"
    assert saved.read_text() == "precious"


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.batches(Path("model.onnx"), Showing(), ReadingOptions()) as show_batch:
        show_batch(1, 4, 32)
        show_batch(2, 4, 64)
    shown = stream.getvalue()
    assert "model.onnx" in shown
    assert "2/4" in shown
    assert " samples/s" in shown


def test_no_progress_bar_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.batches(Path("model.onnx"), Showing(), ReadingOptions()) as show_batch:
        show_batch(1, None, 32)
    assert capsys.readouterr().err == ""
