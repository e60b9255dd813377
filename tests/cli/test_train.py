from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from syncbn_convert.cli import progress
from syncbn_convert.cli.showing import Showing
from syncbn_convert.options.importing import ReadingOptions
from syncbn_convert.training.checkpoint import FILE
from syncbn_convert.training.loop import Update

from .conftest import Run, Terminal

MODELS = Path(__file__).parents[2] / "models"
UNTRAINED = MODELS / "digits_untrained.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The first 96 digits."""
    path = tmp_path / "data.npz"
    with np.load(MODELS / "digits_train.npz") as arrays:
        np.savez(path, image=arrays["image"][:96], label=arrays["label"][:96])
    return path


def arguments(data: Path, output: Path, *flags: str) -> list[str]:
    return [
        *("train", str(UNTRAINED), "--data", str(data), "--labels", "label"),
        *("--loss", "softmax-cross-entropy", "--learning-rate", "0.01", "-o", str(output)),
        *flags,
    ]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_table(data: Path, run: Run) -> None:
    output = data.with_name("out.onnx")
    flags = ["--epochs", "2", "--replicas", "2", "--eval-data", str(data), "--frozen", "stem"]
    finished = run(*arguments(data, output, *flags))
    assert finished.exit_code == 0, finished.stderr
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert lines[0].split() == [
        "epoch",
        "loss",
        "accuracy",
        "eval",
        "loss",
        "eval",
        "accuracy",
        "rate",
    ]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    text = " ".join(lines)
    assert "not trained: frozen   stem_conv/kernel   stem_bn/gamma" in text
    assert "14 parameters, 24,874 values, steps 6, engine threads, replicas 2" in text
    assert lines[-2:] == ["verified", f"wrote {output}"]
    assert files(data.parent) == ["data.npz", "out.onnx"]
    (entry,) = onnx.load(output).training_info
    assert not entry.algorithm.node, "the form keeps the statistics' bindings alone"


def test_json(data: Path, run: Run) -> None:
    output = data.with_name("out.onnx")
    flags = ["--batch-size", "48", "--optimizer", "adamw", "--no-verify", "--json"]
    finished = run(*arguments(data, output, *flags))
    assert finished.exit_code == 0, finished.stderr
    content: dict[str, Any] = json.loads(finished.stdout)
    assert content["command"] == "train"
    assert content["optimizer"] == {
        "name": "adamw",
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-7,
        "weight_decay": 0.004,
    }
    (epoch,) = content["epochs"]
    assert epoch["steps"] == len(content["losses"]) == 2
    assert epoch["loss"] == pytest.approx(np.mean(content["losses"]))
    assert content["verified"] is False
    assert content["samples"] == 96


def test_page_has_curves(data: Path, run: Run) -> None:
    page = data.with_name("page.html")
    flags = ["--eval-data", str(data), "--no-verify", "-q", "--report", str(page)]
    finished = run(*arguments(data, data.with_name("out.onnx"), *flags))
    assert finished.exit_code == 0, finished.stderr
    text = page.read_text()
    for title in ("loss by step", "accuracy by step"):
        assert f'aria-label="{title}"' in text
    assert "<h2>Epochs</h2>" in text


def test_verbose_logs_every_step(data: Path, run: Run) -> None:
    flags = ["-v", "--no-verify", "--batch-size", "32"]
    finished = run(*arguments(data, data.with_name("out.onnx"), *flags))
    logged = [line for line in finished.stderr.splitlines() if "samples/s" in line]
    assert len(logged) == 3
    assert "epoch 1/1, step 3, loss " in logged[-1]


def test_checkpoint_is_not_written_over(data: Path, run: Run) -> None:
    folder = data.with_name("kept")
    flags = ["--checkpoint", str(folder), "--no-verify", "-q"]
    assert run(*arguments(data, data.with_name("a.onnx"), *flags)).exit_code == 0
    assert files(folder) == [FILE]
    again = run(*arguments(data, data.with_name("b.onnx"), *flags))
    assert again.exit_code == 2
    assert "is there already; pass --resume to go on from it" in again.stderr
    resumed = run(*arguments(data, data.with_name("b.onnx"), *flags, "--resume", "--epochs", "2"))
    assert resumed.exit_code == 0, resumed.stderr
    whole = run(*arguments(data, data.with_name("c.onnx"), "--no-verify", "-q", "--epochs", "2"))
    assert whole.exit_code == 0
    assert data.with_name("b.onnx").read_bytes() == data.with_name("c.onnx").read_bytes()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--resume"], 2, "--checkpoint is missing"),
        (["--learning-rate", "0"], 2, "learning rate 0: give a number above 0"),
        (["--optimizer", "adam", "--momentum", "0.9"], 2, "the optimizer adam has no momentum"),
        (["--accumulate", "33"], 2, "cannot be 33 micro-batches"),
        (["--schedule", "step"], 2, "needs at least one"),
        (["--loss", "hinge"], 2, "a scalar output of the model takes none"),
        (["--labels", "absent"], 2, "has no array 'absent'"),
        (["--labels", "image"], 1, "has a value named 'image' of its own"),
        (
            ["--trainable", "nothing"],
            1,
            "--trainable 'nothing' matches no parameter",
        ),
        (["--loss-output", "absent"], 1, "has no output 'absent'"),
        (["--learning-rate", "1e30", "--epochs", "9"], 1, "not finite"),
    ],
)
def test_refusals(flags: list[str], code: int, message: str, data: Path, run: Run) -> None:
    finished = run(*arguments(data, data.with_name("out.onnx"), "--batch-size", "32", *flags))
    assert finished.exit_code == code, finished.stderr
    assert finished.stdout == ""
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert files(data.parent) == ["data.npz"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(96, 10), "go from 10 to 10, but the model has 10 classes"),
        (np.full(96, -1), "go from -1 to -1"),
        (np.zeros(96, np.float32), "takes class indices, whole numbers"),
        (np.zeros((96, 1), np.int64), "have shape [96, 1], but this loss takes 1 axes"),
    ],
)
def test_labels_that_the_loss_does_not_take(
    labels: Any, message: str, data: Path, run: Run
) -> None:
    with np.load(data) as arrays:
        image = arrays["image"]
    np.savez(data, image=image, label=labels)
    finished = run(*arguments(data, data.with_name("out.onnx")))
    assert finished.exit_code == 2
    assert message in finished.stderr


def test_functions_come_in_their_order(
    data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    monkeypatch.syspath_prepend(str(data.parent))
    data.with_name("digits_source.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    with np.load('data.npz') as arrays:\n"
        "        for start in range(0, 96, 20):\n"
        "            yield {name: arrays[name][start:start + 20] for name in arrays.files}\n"
    )
    outputs = [data.with_name(f"{name}.onnx") for name in ("function", "file")]
    source = Path("digits_source:batches")
    refused = run(*arguments(source, outputs[0]))
    assert refused.exit_code == 2
    assert "--shuffle-buffer N, or --no-shuffle and let it shuffle" in refused.stderr
    for origin, output in zip((source, data), outputs, strict=True):
        flags = ["--no-shuffle", "--replicas", "2", "--no-verify", "-q", "--epochs", "2"]
        finished = run(*arguments(origin, output, *flags))
        assert finished.exit_code == 0, finished.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_step_writes_what_belongs_together(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "step"
    flags = ["--labels", "label", "--loss", "softmax-cross-entropy", "--optimizer", "adam"]
    finished = run("step", str(UNTRAINED), *flags, "-o", str(folder))
    assert finished.exit_code == 0, finished.stderr
    assert files(folder) == ["gradient.onnx", "step.json", "update.onnx"]
    description = json.loads((folder / "step.json").read_text())
    gradient, update = (onnx.load(folder / description[name]) for name in ("gradient", "update"))
    assert {info.name for info in gradient.graph.output} == {
        description["loss_output"],
        *(entry["name"] for entry in (*description["outputs"], *description["buckets"])),
        *(entry["next"] for entry in description["statistics"]),
    }
    assert {info.name for info in update.graph.input} == {
        description["learning_rate"],
        description["step"],
        *(
            entry["name"]
            for kind in ("parameters", "slots", "buckets")
            for entry in description[kind]
        ),
    }
    assert {info.name for info in update.graph.output} == {
        entry["next"] for kind in ("parameters", "slots") for entry in description[kind]
    }
    (info,) = gradient.training_info
    bound = {pair.key: pair.value for pair in info.update_binding}
    for kind in ("parameters", "slots", "statistics"):
        for entry in description[kind]:
            assert bound[entry["name"]] == entry["next"]
    refused = run("step", str(UNTRAINED), *flags, "-o", str(folder))
    assert refused.exit_code == 2
    assert "exists; pass --force to replace it" in refused.stderr


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with progress.updates(Path("model.onnx"), Showing(), ReadingOptions()) as show_update:
        show_update(
            Update(
                epoch=2,
                epochs=3,
                step=7,
                steps=12,
                loss=0.25,
                accuracy=0.5,
                rate=640.0,
                seconds_left=3725.0,
            )
        )
    shown = stream.getvalue()
    assert "7/12" in shown
    assert "loss 0.25, accuracy 50.0 %, 640 samples/s, 1:02:05 left" in shown


def test_no_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.updates(Path("model.onnx"), Showing(), ReadingOptions()) as show_update:
        show_update(
            Update(
                epoch=1,
                epochs=1,
                step=1,
                steps=None,
                loss=1.0,
                accuracy=None,
                rate=1.0,
                seconds_left=None,
            )
        )
    assert stream.getvalue() == ""
