"""What goes wrong, as one line each."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from syncbn_convert import ReplicaOptions, StepOptions, UsageError
from syncbn_convert.cli.main import main
from syncbn_convert.options.accelerators import AcceleratorOptions
from tests.models import DIGITS
from tests.training.digits import TRAIN
from tests.xla.conftest import InChild


def refused(arguments: list[str], output: Path) -> tuple[int, str]:
    """Runs in the child: exit code and error of the command line."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["calibrate", *arguments, "--engine", "xla", "-o", str(output), "--no-verify"])
    assert not output.exists()
    return code, said.getvalue()


def lines(found: tuple[int, str], wanted: int) -> str:
    code, said = found
    assert code == wanted, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "error: " in line]
    return line


def test_platform_that_is_not_there(tmp_path: Path, in_child: InChild) -> None:
    arguments = [str(DIGITS), "--data", str(TRAIN), "--platform", "tpu"]
    found = lines(in_child(refused, arguments, tmp_path / "o.onnx"), 2)
    assert "JAX sees no tpu here" in found
    assert "xla-tpu" in found


def test_more_replicas_than_devices(tmp_path: Path, in_child: InChild) -> None:
    arguments = [str(DIGITS), "--data", str(TRAIN), "--replicas", "5"]
    found = lines(in_child(refused, arguments, tmp_path / "o.onnx"), 2)
    assert "--replicas 5" in found
    assert "sees 4 (cpu)" in found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"platform": "npu"}, "choose auto, cpu, gpu or tpu"),
        ({"precision": "float8"}, "choose float32, tf32 or bfloat16"),
        ({"hosts": 2}, "belong together"),
        ({"coordinator": "here", "hosts": 2, "host_id": 0}, "give HOST:PORT"),
        ({"coordinator": "here:99", "hosts": 2, "host_id": 2}, "host 2 of 2"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AcceleratorOptions(**given)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from syncbn_convert.xla.jax_extra import require_jax

    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UsageError, match=r"pip install 'syncbn-convert\[xla\]'"):
        require_jax()


def memory_messages() -> list[str]:
    """Runs in the child, which may import JAX."""
    from syncbn_convert.xla import trouble

    gib = 1 << 30
    text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes."
    told = [trouble.out_of_memory(text, {"bytes_limit": 80 * gib}, 256)]
    analysis = SimpleNamespace(argument_size_in_bytes=10 * gib, temp_size_in_bytes=140 * gib)
    compiled = SimpleNamespace(memory_analysis=lambda: analysis)
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 80 * gib})
    mesh = SimpleNamespace(local_devices=[device], size=2)
    with pytest.raises(Exception, match="GiB") as caught:
        trouble.check_fits(compiled, mesh, 200)
    return [*told, str(caught.value)]


def test_batch_that_does_not_fit(in_child: InChild) -> None:
    ran_out, planned = in_child(memory_messages)
    assert "80.0 GiB" in ran_out
    assert "12345 bytes" in ran_out
    assert "256 samples" in ran_out
    assert "needs 150.0 GiB" in planned
    assert "--batch-size of about 200" in planned


def float64_on_a_tpu() -> str:
    import onnx_ir as ir

    from syncbn_convert.xla import trouble

    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 18]>
            g (double[n,3] x) => (double[n,3] y) <double[3] w = {1, 2, 3}> { y = Mul(x, w) }"""
        )
    )
    devices = np.array([SimpleNamespace(platform="tpu")] * 4)
    mesh = SimpleNamespace(devices=devices, size=4)
    with pytest.raises(UsageError) as caught:
        trouble.check_double(model, mesh)
    return str(caught.value)


def test_float64_model_where_there_is_no_float64(in_child: InChild) -> None:
    assert in_child(float64_on_a_tpu).startswith("initializer 'w' is float64, which 4 tpu devices")


def untranslated() -> str:
    from syncbn_convert import ConversionError, train
    from syncbn_convert.options.schedules import Schedule
    from syncbn_convert.options.training import TrainOptions

    model = onnx.load(DIGITS)
    first = model.graph.node[0]
    node = onnx.helper.make_node("DequantizeLinear", ["whole", "unit"], ["strange.y"], "strange")
    whole = onnx.helper.make_node("QuantizeLinear", [first.input[0], "unit"], ["whole"], "quantize")
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.asarray(0.01, np.float32), "unit")
    )
    first.input[0] = "strange.y"
    model.graph.node.insert(0, node)
    model.graph.node.insert(0, whole)
    step = StepOptions(loss="softmax-cross-entropy", labels="label")
    options = TrainOptions(schedule=Schedule(learning_rate=0.1))
    with pytest.raises(ConversionError) as caught:
        train(model, TRAIN, step, options, replicas=ReplicaOptions(engine="xla"))
    return str(caught.value)


def test_operator_without_a_translation_is_named(in_child: InChild) -> None:
    message = in_child(untranslated)
    assert "QuantizeLinear" in message
    assert "node 'quantize'" in message or "node 'strange'" in message
    assert "--engine threads" in message
