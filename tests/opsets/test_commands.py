"""Commands on models of old opsets: right numbers, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as onh
import onnx.parser
import onnx_ir as ir
import pytest

import syncbn_convert
from syncbn_convert import (
    ConvertOptions,
    FoldOptions,
    Schedule,
    StepOptions,
    TrainOptions,
    UnfuseOptions,
    VerificationError,
)
from syncbn_convert.form.rises import steps
from syncbn_convert.form.rises.site import Site
from tests.opsets.samples import Array, floats
from tests.opsets.test_rises import EPS, run

Command = Callable[[Path, Path, Path, bool], Any]

ENLARGING = {
    (7, "linear"): 'u = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 1.5]> (x)',
    (8, "nearest"): 'u = Upsample <mode = "nearest", scales = [1.0, 1.0, 1.5, 3.0]> (x)',
    (9, "linear"): 'u = Upsample <mode = "linear"> (x, k)',
    (10, "linear"): 'u = Resize <mode = "linear"> (x, k)',
    (10, "nearest"): 'u = Resize <mode = "nearest"> (x, k)',
}
SCALES = {"linear": [1, 1, 2.5, 2], "nearest": [1, 1, 0.6, 1.7]}


def enlarging(opset: int, mode: str, path: Path, *, normalized: bool = True) -> Path:
    """Write a model that resizes, convolves, normalizes and averages."""
    text = "n = BatchNormalization (c, s, b, m, v)" if normalized else "n = Relu (c)"
    model = onnx.parser.parse_model(
        f"""<ir_version: 4, opset_import: ["" : {opset}]>
        g (float[N, 3, 5, 6] x) => (float[N, 4] y) {{
          {ENLARGING[opset, mode]}
          [conv] c = Conv <kernel_shape = [3, 3]> (u, w)
          {text}
          r = Tanh (n)
          a = GlobalAveragePool (r)
          [flat] y = Flatten (a)
        }}"""
    )
    values = {"k": np.array(SCALES[mode], np.float32), "w": floats(4, 3, 3, 3)}
    if normalized:
        values |= {name: floats(4) for name in "sbm"} | {"v": np.abs(floats(4)) + 0.5}
    used = {name for node in model.graph.node for name in node.input}
    for name, value in values.items():
        if name in used:
            model.graph.initializer.append(onh.from_array(value, name))
    onnx.save(model, path)
    return path


def before_normalization(path: Path, feeds: dict[str, Array]) -> Array:
    """What the Conv of the original computes."""
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="c"))
    return np.asarray(run(model, feeds)[0])


@pytest.mark.parametrize(("opset", "mode"), ENLARGING)
def test_statistics_are_those_of_the_original_graph(opset: int, mode: str, tmp_path: Path) -> None:
    path, data = enlarging(opset, mode, tmp_path / "m.onnx"), tmp_path / "d.npz"
    x = floats(12, 3, 5, 6)
    np.savez(data, x=x)
    report = syncbn_convert.calibrate_file(path, data, tmp_path / "o.onnx")
    assert report is not None
    assert report.verified
    convolved = before_normalization(path, {"x": x}).astype(np.float64)
    found = {t.name: onh.to_array(t) for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    size = EPS * 3 * 9 * float(np.abs(convolved).max())
    np.testing.assert_allclose(found["m"], convolved.mean(axis=(0, 2, 3)), rtol=0, atol=size)
    np.testing.assert_allclose(found["v"], convolved.var(axis=(0, 2, 3)), rtol=64 * EPS)


def convert(path: Path, data: Path, output: Path, verify: bool) -> Any:
    del data
    return syncbn_convert.convert_file(path, output, verify=verify)


def convert_to_18(path: Path, data: Path, output: Path, verify: bool) -> Any:
    del data
    return syncbn_convert.convert_file(path, output, ConvertOptions(opset=18), verify=verify)


def fold(path: Path, data: Path, output: Path, verify: bool) -> Any:
    del data
    model = onnx.load(path)
    (norm,) = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.output[:] = ["n", "next_m", "next_v", "saved_m", "saved_v"]
    onnx.save(model, path)
    return syncbn_convert.fold_file(path, output, FoldOptions(opset=15), verify=verify)


def calibrate(path: Path, data: Path, output: Path, verify: bool) -> Any:
    return syncbn_convert.calibrate_file(path, data, output, verify=verify)


def train(path: Path, data: Path, output: Path, verify: bool) -> Any:
    step, options = (
        StepOptions(loss="mse", labels="label"),
        TrainOptions(schedule=Schedule(learning_rate=0.1), batch_size=4),
    )
    return syncbn_convert.train_file(path, data, output, step, options, verify=verify)


def unfuse(path: Path, data: Path, output: Path, verify: bool) -> Any:
    enlarging(10, "linear", path, normalized=False)
    options = UnfuseOptions(batch_size=4)
    return syncbn_convert.unfuse_file(path, data, output, options, verify=verify)


COMMANDS = [convert, convert_to_18, fold, calibrate, train, unfuse]


def wrong_coordinates(site: Site) -> None:
    """What onnx's version converter makes of it."""
    none = site.constant([], ir.DataType.FLOAT)
    site.become("Resize", [site.x, none, site.input(1)])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_rise_that_is_wrong_ends_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, output = (tmp_path / name for name in ("m.onnx", "d.npz", "o.onnx"))
    np.savez(data, x=floats(8, 3, 5, 6), label=floats(8, 4))
    enlarging(10, "linear", path)
    command(path, data, output, True)
    output.unlink()
    monkeypatch.setitem(steps._rules, ("Resize", 11), wrong_coordinates)
    with pytest.raises(VerificationError, match="differs from its original"):
        command(path, data, output, True)
    assert not output.exists()
    command(path, data, output, False)
    assert output.exists()


MODEL: dict[str, Callable[[Any, Any], object]] = {
    "calibrate": lambda model, data: syncbn_convert.calibrate(model, data),
    "train": lambda model, data: syncbn_convert.train(
        model,
        data,
        StepOptions(loss="mse", labels="label"),
        TrainOptions(schedule=Schedule(learning_rate=0.1), batch_size=4, shuffle=False),
    ),
    "step": lambda model, _: syncbn_convert.step(model, StepOptions(loss="mse", labels="label")),
    "unfuse": lambda model, data: syncbn_convert.unfuse(model, data, UnfuseOptions(batch_size=4)),
}


@pytest.mark.parametrize("command", MODEL)
def test_a_rise_that_is_wrong_ends_a_call_with_a_model_in_memory(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = enlarging(10, "linear", tmp_path / "m.onnx", normalized=command != "unfuse")
    x, label = floats(8, 3, 5, 6), floats(8, 4)
    monkeypatch.setitem(steps._rules, ("Resize", 11), wrong_coordinates)
    for model in (onnx.load(path), ir.load(path)):
        before = ir.to_proto(model) if isinstance(model, ir.Model) else model
        content = before.SerializeToString()
        with pytest.raises(VerificationError, match="differs from its original"):
            MODEL[command](model, lambda: [{"x": x, "label": label}])
        after = ir.to_proto(model) if isinstance(model, ir.Model) else model
        assert after.SerializeToString() == content


def test_the_graphs_of_a_step_are_not_written_where_the_rise_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = enlarging(10, "linear", tmp_path / "m.onnx")
    monkeypatch.setitem(steps._rules, ("Resize", 11), wrong_coordinates)
    options = StepOptions(loss="mse", labels="label")
    with pytest.raises(VerificationError, match="differs from its original"):
        syncbn_convert.step_file(path, tmp_path / "step", options)
    assert not list((tmp_path / "step").iterdir())
    syncbn_convert.step_file(path, tmp_path / "step", options, verify=False)
    assert len(list((tmp_path / "step").iterdir())) == 3


TAILS = [
    "d = Dropout <is_test = 1> (n) y = Relu (d)",
    "c = Concat <axis = 1> (n, n) y = Clip <min = 0.0, max = 1.0> (c)",
    "d, k = Dropout <is_test = 1> (n) y = Sum (n, d, n)",
    "p = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 1]> (n) y = Max (p, p)",
    "q = Mul <axis = 1, broadcast = 1> (n, b) y = PRelu (q, s)",
    "e = Elu (n) f = Softmax (e) y = Selu (f)",
]


def caffe_like(opset: int, tail: str, path: Path) -> Path:
    """Write a model of an opset that ONNX Runtime does not run, as old frameworks wrote them."""
    consumed = ", consumed_inputs = [0, 0, 0, 1, 1]" if opset < 6 else ""
    names = {"w": floats(4, 3, 3, 3)} | {name: floats(4) for name in "sbm"}
    names["v"] = np.abs(floats(4)) + 0.5
    listed = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in names.items())
    model = onnx.parser.parse_model(
        f"""<ir_version: 3, opset_import: ["" : {opset}]>
        g (float[2, 3, 6, 6] x, {listed}) => (float[A, B, C, D] y) {{
          h = Conv <kernel_shape = [3, 3]> (x, w)
          [norm] n = BatchNormalization <is_test = 1{consumed}> (h, s, b, m, v)
          {tail}
        }}"""
    )
    for name, value in names.items():
        model.graph.initializer.append(onh.from_array(value, name))
    if opset < 6:
        for node in model.graph.node:
            if node.op_type in (
                "Dropout",
                "Clip",
                "Relu",
                "Sum",
                "Max",
                "Mul",
                "PRelu",
                "Elu",
                "Selu",
            ):
                consumes = onnx.helper.make_attribute("consumed_inputs", [0] * len(node.input))
                node.attribute.append(consumes)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("opset", "tail"), [*zip((3, 6, 5, 3, 6, 3), TAILS, strict=True)])
def test_models_that_no_runtime_runs_are_fused_and_converted(
    opset: int, tail: str, tmp_path: Path
) -> None:
    path = caffe_like(opset, tail, tmp_path / "m.onnx")
    for command in (syncbn_convert.fuse_file, syncbn_convert.convert_file):
        _, report = command(path, tmp_path / f"{command.__name__}.onnx")
        assert report.verified
        assert report.converted == 1
        (note,) = (note for note in report.notes if note.startswith("ONNX Runtime runs no"))
        assert "compared from opset 7 on" in note
