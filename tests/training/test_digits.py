"""From random weights to a deployed classifier, on every engine, by the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from syncbn_convert import StepOptions
from syncbn_convert.cli.main import main
from syncbn_convert.files import model_file
from syncbn_convert.runtime import LocalCommunicator
from syncbn_convert.training.evaluation import Evaluator
from syncbn_convert.training.samples import Samples
from syncbn_convert.training.step_models import build
from tests.faults.launch import Launcher, on_replicas

from .digits import TEST, TRAIN, UNTRAINED, weights_of

Array = npt.NDArray[Any]

SYNCBN = [sys.executable, "-m", "syncbn_convert"]
LEAST = 0.97


def command(output: Path, *flags: str) -> list[str]:
    return [
        *("train", str(UNTRAINED), "--data", str(TRAIN), "--eval-data", str(TEST)),
        *("--labels", "label", "--loss", "softmax-cross-entropy"),
        *("--optimizer", "adam", "--learning-rate", "0.003", "--schedule", "cosine"),
        *("--epochs", "8", "--batch-size", "48", "-o", str(output), f"--json={output}.json"),
        *("--threads-per-replica", "1", "-q", *flags),
    ]


def evaluation(output: Path) -> dict[str, Any]:
    content = json.loads(Path(f"{output}.json").read_text())
    last: dict[str, Any] = content["epochs"][-1]
    return {**last, "replicas": content["replicas"], "engine": content["engine"]}


def predictions(model: Path) -> Array:
    with np.load(TEST) as data:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(None, {"image": data["image"]})
    classes: Array = np.asarray(probabilities).argmax(axis=1)
    return classes


def labels() -> Array:
    with np.load(TEST) as data:
        found: Array = data["label"]
        return found


def test_four_threads_reach_97_percent_and_deploy(tmp_path: Path) -> None:
    form, deployed, fused = (tmp_path / f"{name}.onnx" for name in ("form", "deployed", "fused"))
    assert main(command(form, "--replicas", "4")) == 0
    found = evaluation(form)
    print(found)
    assert (found["engine"], found["replicas"]) == ("threads", 4)
    assert found["eval_accuracy"] >= LEAST
    assert main(["fold", str(form), "-o", str(deployed), "-q"]) == 0
    assert main(["fold", str(form), "--fuse", "-o", str(fused), "-q"]) == 0
    assert main(["verify", str(deployed), str(fused), "--data", str(TEST), "-q"]) == 0
    np.testing.assert_array_equal(predictions(fused), predictions(deployed))
    assert float((predictions(fused) == labels()).mean()) == found["eval_accuracy"]


def test_names_and_types_are_those_of_the_model(tmp_path: Path) -> None:
    """The deployed model is the user's own graph with new values."""
    form, deployed = tmp_path / "form.onnx", tmp_path / "deployed.onnx"
    assert main([*command(form, "--no-verify"), "--epochs", "1"]) == 0
    assert main(["fold", str(form), "-o", str(deployed), "-q", "--no-verify"]) == 0
    before, after = onnx.load(UNTRAINED), onnx.load(deployed)
    assert [node.name for node in after.graph.node] == [node.name for node in before.graph.node]
    old, new = weights_of(before), weights_of(after)
    assert new.keys() == old.keys()
    for name, array in old.items():
        assert new[name].shape == array.shape
        assert np.any(new[name] != array), name


def test_evaluation_is_that_of_the_deployed_model_image_by_image(tmp_path: Path) -> None:
    """The images that the deployed model gets right are evaluated as all right, others as none."""
    form, deployed = tmp_path / "form.onnx", tmp_path / "deployed.onnx"
    assert main([*command(form, "--no-verify"), "--epochs", "2"]) == 0
    assert main(["fold", str(form), "--fuse", "-o", str(deployed), "-q"]) == 0
    right = predictions(deployed) == labels()
    assert right.mean() == evaluation(form)["eval_accuracy"]
    assert 0 < right.sum() < len(right)
    options = StepOptions(loss="softmax-cross-entropy", labels="label")
    models = build(model_file.load_model(form), options)
    for chosen, accuracy in ((right, 1.0), (~right, 0.0)):
        part = tmp_path / "part.npz"
        with np.load(TEST) as data:
            np.savez(part, image=data["image"][chosen], label=data["label"][chosen])
        samples = Samples(part, ["image", "label"], None, shuffle=False)
        evaluator = Evaluator(models, samples, 16, 1)
        found = evaluator.evaluate(LocalCommunicator(), weights_of(models.form))
        assert found.accuracy == accuracy
        assert found.samples == chosen.sum()


@pytest.mark.sweep
@pytest.mark.parametrize("launcher", ["mpi", "torch"])
def test_processes_reach_97_percent(launcher: Launcher, tmp_path: Path) -> None:
    form = tmp_path / "form.onnx"
    finished = on_replicas(launcher, 2, [*SYNCBN, *command(form)])
    assert finished.exit_code == 0, finished.stderr
    found = evaluation(form)
    print(found)
    assert (found["engine"], found["replicas"]) == (launcher, 2)
    assert found["eval_accuracy"] >= LEAST
    assert float((_folded(form, tmp_path) == labels()).mean()) == found["eval_accuracy"]


def _folded(form: Path, folder: Path) -> Array:
    fused = folder / "fused.onnx"
    assert main(["fold", str(form), "--fuse", "-o", str(fused), "-q"]) == 0
    return predictions(fused)


@pytest.mark.sweep
def test_engines_give_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    """Gradients are added in the order of ranks on every engine; so are statistics of two."""
    flags = ["--no-verify", "--epochs", "1"]
    threads, mpi = tmp_path / "threads.onnx", tmp_path / "mpi.onnx"
    assert main([*command(threads, "--replicas", "2"), *flags]) == 0
    finished = on_replicas("mpi", 2, [*SYNCBN, *command(mpi), *flags])
    assert finished.exit_code == 0, finished.stderr
    assert threads.read_bytes() == mpi.read_bytes()
