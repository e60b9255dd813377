from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import FoldOptions
from syncbn_convert.commands.statistics import extract_statistics
from syncbn_convert.errors import ConversionError
from syncbn_convert.form import moving_statistics

from .conftest import Run


def _initializers(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: onh.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def trained(digits: Path) -> Path:
    """Statistics of the sample model, each value changed, as if trained elsewhere."""
    found = extract_statistics(digits)
    tensors = {name: values * 1.5 + 0.25 for name, values in found.tensors.items()}
    path = digits.with_name("trained.safetensors")
    moving_statistics.save(moving_statistics.Statistics(tensors, found.layers_digest), path)
    return path


def test_statistics_are_those_of_the_model(digits: Path, run: Run) -> None:
    output = digits.with_name("s.safetensors")
    finished = run("statistics", str(digits), "-o", str(output))
    assert finished.exit_code == 0, finished.stderr
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["statistic", "channels", "dtype", "min", "max"]
    assert "".join(finished.stdout.split()).endswith(f"wrote{output}")
    found = moving_statistics.load(output)
    assert len(found.tensors) == 10
    expected = _initializers(digits)
    for name, values in found.tensors.items():
        np.testing.assert_array_equal(values, expected[name])
        [row] = [line.split() for line in lines if line.startswith(f"{name} ")]
        assert row[1:3] == [str(values.size), "float32"]
        assert float(row[3]) == pytest.approx(values.min(), rel=0.05)
        assert float(row[4]) == pytest.approx(values.max(), rel=0.05)


def test_training_form_and_original_have_the_same_statistics(digits: Path, run: Run) -> None:
    form = digits.with_name("form.onnx")
    assert run(str(digits), "-o", str(form), "--no-verify").exit_code == 0
    for model in (digits, form):
        output = model.with_suffix(".safetensors")
        assert run("statistics", str(model), "-o", str(output), "-q").exit_code == 0
    first, second = (model.with_suffix(".safetensors") for model in (digits, form))
    assert first.read_bytes() == second.read_bytes()


def test_json(digits: Path, run: Run) -> None:
    output = digits.with_name("s.safetensors")
    content = json.loads(run("statistics", str(digits), "-o", str(output), "--json").stdout)
    assert (content["command"], content["output"]) == ("statistics", str(output))
    assert [entry["name"] for entry in content["statistics"]] == list(
        extract_statistics(digits).tensors
    )
    assert {entry["channels"] for entry in content["statistics"]} == {32, 64}


def test_an_existing_file_needs_force(digits: Path, run: Run) -> None:
    output = digits.with_name("s.safetensors")
    output.write_text("precious")
    refused = run("statistics", str(digits), "-o", str(output))
    assert refused.exit_code == 2
    assert refused.stderr == f"error: {output}: exists; pass --force to replace it\n"
    assert output.read_text() == "precious"
    assert run("statistics", str(digits), "-o", str(output), "--force").exit_code == 0
    assert len(moving_statistics.load(output).tensors) == 10


def test_fold_takes_statistics_into_form_and_original_alike(
    digits: Path, trained: Path, run: Run
) -> None:
    form = digits.with_name("form.onnx")
    assert run(str(digits), "-o", str(form), "--no-verify").exit_code == 0
    folded = []
    for number, model in enumerate((digits, form)):
        folded.append(digits.with_name(f"folded-{number}.onnx"))
        arguments = ["fold", str(model), "--statistics", str(trained), "-o", str(folded[-1])]
        finished = run(*arguments, "--json")
        assert finished.exit_code == 0, finished.stderr
        content = json.loads(finished.stdout)
        assert (content["command"], content["converted"]) == ("fold", 5)
        assert content["verified"] is True
    expected = {**_initializers(digits), **moving_statistics.load(trained).tensors}
    for path in folded:
        found = _initializers(path)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_fold_in_python_leaves_the_argument_alone(digits: Path, trained: Path) -> None:
    model = onnx.load(digits)
    before = model.SerializeToString(deterministic=True)
    folded = syncbn_convert.fold(model, FoldOptions(statistics=trained), verify=False)
    assert model.SerializeToString(deterministic=True) == before
    assert isinstance(folded, onnx.ModelProto)
    values = {tensor.name: onh.to_array(tensor) for tensor in folded.graph.initializer}
    for name, expected in moving_statistics.load(trained).tensors.items():
        np.testing.assert_array_equal(values[name], expected)


def test_statistics_of_another_model_are_refused(digits: Path, trained: Path) -> None:
    found = moving_statistics.load(trained)
    name = "stem_bn/moving_mean"
    others = {
        "1 missing": {key: value for key, value in found.tensors.items() if key != name},
        r"has shape \[3\]": {**found.tensors, name: np.zeros(3, np.float32)},
        "is not finite": {**found.tensors, name: found.tensors[name] * np.float32(np.nan)},
    }
    for message, tensors in others.items():
        moving_statistics.save(moving_statistics.Statistics(tensors, found.layers_digest), trained)
        with pytest.raises(ConversionError, match=message):
            syncbn_convert.fold(digits, FoldOptions(statistics=trained), verify=False)
    moving_statistics.save(moving_statistics.Statistics(found.tensors, "0" * 64), trained)
    with pytest.raises(ConversionError, match="digest 000000000000, the model's is"):
        syncbn_convert.fold(digits, FoldOptions(statistics=trained), verify=False)


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file"])
def test_an_unreadable_statistics_file(content: bytes | None, digits: Path, run: Run) -> None:
    path = digits.with_name("broken.safetensors")
    if content is not None:
        path.write_bytes(content)
    output = digits.with_name("out.onnx")
    finished = run("fold", str(digits), "--statistics", str(path), "-o", str(output))
    assert finished.exit_code == 2
    assert finished.stderr.startswith(f"error: {path}: ")
    assert finished.stderr.count("\n") == 1
    assert not output.exists()
