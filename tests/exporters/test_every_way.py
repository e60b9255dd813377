"""Every way of `torch.onnx.export`: what each command makes of it, with PyTorch as the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import syncbn_convert
from syncbn_convert import FoldOptions, SyncBNError
from syncbn_convert.cli.main import main
from syncbn_convert.options.optimizers import Sgd
from syncbn_convert.options.schedules import Schedule
from syncbn_convert.options.training import StepOptions, TrainOptions
from tests.exporters.network import MODULES, images, inference, network
from tests.harness import Array, run

KEPT = ["unoptimized", "unoptimized_in_one_file", "script_preserve"]
"""With BatchNormalization in inference mode."""
FUSED = ["optimized", "script_eval"]
LEANEST = 10
"""Nodes of the network: seven before the head, average, Flatten or Reshape, and Gemm."""
ROUNDINGS = 64 * float(np.finfo(np.float32).eps)


def _logits(path: Path) -> Array:
    return run(onnx.load(path), {"image": images()})["logits"]


def _assert_computes(got: Array, wanted: Array) -> None:
    assert np.abs(got - wanted).max() <= ROUNDINGS * np.abs(wanted).max()


@pytest.mark.parametrize("way", [*KEPT, "script_training"])
def test_convert_fold_and_fuse(way: str, exported: Path, tmp_path: Path) -> None:
    source = exported / f"{way}.onnx"
    form, folded, fused = (tmp_path / f"{name}.onnx" for name in ("form", "folded", "fused"))
    _, report = syncbn_convert.convert_file(source, form, verify=way == "unoptimized")
    assert [record.module for record in report.records if record.action == "converted"] == MODULES
    _, report = syncbn_convert.fold_file(form, folded, verify=False)
    assert [r.module for r in report.records if r.action == "folded"] == MODULES
    syncbn_convert.fold_file(form, fused, FoldOptions(fuse=True), verify=False)
    kinds = [node.op_type for node in onnx.load(fused).graph.node]
    assert kinds[:7] == ["Conv", "Relu", "Conv", "Relu", "Conv", "Add", "Relu"]
    assert len(kinds) == LEANEST
    for path in (folded, fused):
        _assert_computes(_logits(path), inference(images(), source))


@pytest.mark.parametrize("way", KEPT)
def test_fuse(way: str, exported: Path, tmp_path: Path) -> None:
    source = exported / f"{way}.onnx"
    _, report = syncbn_convert.fuse_file(source, tmp_path / "fused.onnx", verify=False)
    assert [(r.module, r.reason) for r in report.records] == [
        ("stem.1", "into stem.0"),
        ("layer1.0.bn1", "into layer1.0.conv1"),
        ("layer1.0.bn2", "into layer1.0.conv2"),
    ]
    kinds = {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    assert not kinds & {"BatchNormalization", "Constant", "Identity", "Shape", "Expand", "Concat"}
    _assert_computes(_logits(tmp_path / "fused.onnx"), inference(images(), source))


@pytest.mark.parametrize("way", ["script_training", "unoptimized_training"])
def test_a_model_left_in_training_mode_is_repaired(
    way: str, exported: Path, tmp_path: Path
) -> None:
    source = exported / f"{way}.onnx"
    _, report = syncbn_convert.fold_file(source, tmp_path / "folded.onnx", FoldOptions(fuse=True))
    assert "dropout switched off" in [record.reason for record in report.records]
    assert report.verified
    kinds = {node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node}
    assert not kinds & {"BatchNormalization", "Dropout"}
    _assert_computes(_logits(tmp_path / "folded.onnx"), inference(images(), source))


@pytest.mark.parametrize("way", [*KEPT, "script_training"])
def test_calibrate_measures_what_torch_measures(way: str, exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=images(12))
    output = tmp_path / "calibrated.onnx"
    arguments = ["--data", tmp_path / "data.npz", "-o", output, "-q", "--no-verify"]
    assert main(["calibrate", str(exported / f"{way}.onnx"), *map(str, arguments)]) == 0
    convolution = network().stem[0].double()
    with torch.no_grad():
        measured = convolution(torch.from_numpy(images(12)).double())
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    mean, var = measured.mean((0, 2, 3)).numpy(), measured.var((0, 2, 3), correction=0).numpy()
    np.testing.assert_allclose(values["stem.1.running_mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values["stem.1.running_var"], var, rtol=1e-5)


@pytest.mark.parametrize("way", KEPT)
def test_train_steps_as_torch_does(way: str, exported: Path) -> None:
    labels = np.arange(6, dtype=np.int64) % 5
    trained, report = syncbn_convert.train_with_report(
        onnx.load(exported / f"{way}.onnx"),
        lambda: iter([{"image": images(), "label": labels}]),
        StepOptions(loss="softmax-cross-entropy", labels="label", optimizer=Sgd()),
        TrainOptions(schedule=Schedule(learning_rate=0.1), batch_size=6, epochs=1, shuffle=False),
    )
    assert len(report.losses) == 1
    wanted = network().double().train()
    wanted.drop.eval()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.1)
    loss = torch.nn.functional.cross_entropy(
        wanted(torch.from_numpy(images()).double()), torch.from_numpy(labels)
    )
    torch.autograd.backward(loss)
    optimizer.step()
    assert report.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    assert isinstance(trained, onnx.ModelProto)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in trained.graph.initializer}
    for name, parameter in wanted.named_parameters():
        np.testing.assert_allclose(values[name], parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", FUSED)
@pytest.mark.parametrize("command", ["convert", "calibrate"])
def test_what_the_exporter_fused_is_told_with_the_cure(
    way: str, command: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", image=images())
    data = ["--data", str(tmp_path / "data.npz")] if command == "calibrate" else []
    source, output = exported / f"{way}.onnx", tmp_path / "o.onnx"
    assert main([command, str(source), *data, "-o", str(output)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "unfuse MODEL --data" in message
    assert ("optimize=False" if way == "optimized" else "TrainingMode.PRESERVE") in message
    assert not output.exists()
    given = ["--data", str(tmp_path / "data.npz"), "-o", str(output)]
    assert main(["unfuse", str(source), *given, "--no-verify"]) == 0
    again = [*data, "-o", str(tmp_path / "done.onnx"), "-q", "--no-verify"]
    assert main([command, str(output), *again]) == 0


def test_how_many_the_exporter_fused_is_known_of_dynamo(exported: Path) -> None:
    with pytest.raises(SyncBNError, match=r"fused it .* \(3, the first 'stem\.1'\)"):
        syncbn_convert.convert(exported / "optimized.onnx")
