"""Models of a fixed batch: opened where their function allows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from syncbn_convert import Schedule, StepOptions, TrainOptions, calibrate, train_with_report
from syncbn_convert.errors import UsageError
from syncbn_convert.files import model_file
from syncbn_convert.runtime.open_batch import fixed_batch, open_batch
from tests.harness import run

BODIES = {
    "plain": "y = Add(h, b)",
    "reshape": "s = Constant <value = int64[3] {4, 3, 1}>() r = Reshape(h, s) "
    "t = Constant <value = int64[2] {4, -1}>() y = Reshape(r, t)",
    "zero": "s = Constant <value = int64[3] {0, 3, 1}>() r = Reshape(h, s) "
    "t = Constant <value = int64[2] {4, 3}>() y = Reshape(r, t)",
}
STUCK = {
    "expand": "s = Constant <value = int64[2] {4, 3}>() e = Expand(b, s) y = Add(h, e)",
    "mixed": "s = Constant <value = int64[2] {3, 4}>() r = Reshape(h, s) "
    "t = Transpose <perm = [1, 0]> (r) y = Add(t, b)",
    "across": "a = Constant <value = int64[1] {0}>() m = ReduceMax(h, a) y = Sub(h, m)",
}
STEP = StepOptions(loss="mse", labels="label")


def model(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        g (float[4,3] x) => (float[4,3] y)
        <float[3] s0 = {{1, 2, 3}}, float[3] b = {{1, 0, 2}}, float[3] mean = {{0, 1, 0}},
         float[3] var = {{1, 2, 1}}>
        {{ h = BatchNormalization(x, s0, b, mean, var) {body} }}"""
    )


def data(folder: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, label=x[:, ::-1])
    return folder / "data.npz"


def options(batch_size: int = 5) -> TrainOptions:
    return TrainOptions(schedule=Schedule(learning_rate=0.1), batch_size=batch_size)


@pytest.mark.parametrize("kind", BODIES)
def test_what_can_be_opened_computes_the_same_of_any_batch(kind: str, tmp_path: Path) -> None:
    given = model(BODIES[kind])
    opened = model_file.as_model(given)
    assert fixed_batch(opened) == 4
    assert open_batch(opened)
    assert fixed_batch(opened) is None
    proto = model_file.to_proto(opened)
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    wanted = np.concatenate([run(given, {"x": x[at : at + 4]})["y"] for at in (0, 4, 5)])
    np.testing.assert_array_equal(run(proto, {"x": x})["y"], wanted[[*range(8), 11]])
    _, report = train_with_report(given, data(tmp_path), STEP, options(), eval_data=data(tmp_path))
    assert "the model was exported for batches of 4, and now takes any" in report.notes
    found = calibrate(given, data(tmp_path))
    assert isinstance(found, onnx.ModelProto)
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


@pytest.mark.parametrize("kind", STUCK)
def test_what_cannot_be_opened_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    given = model(STUCK[kind])
    opened = model_file.as_model(given)
    assert not open_batch(opened)
    assert model_file.to_proto(opened) == model_file.to_proto(model_file.as_model(given))
    with pytest.raises(UsageError, match=r"batches of 4 alone.*--batch-size 4 --drop-last"):
        train_with_report(given, data(tmp_path), STEP, options())
