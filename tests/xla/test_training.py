"""Steps through XLA beside steps on ONNX Runtime, from the same weights on the same data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from syncbn_convert import ConversionError, StepOptions
from syncbn_convert.options.accelerators import AcceleratorOptions
from syncbn_convert.options.keras_objects import Regularizer
from syncbn_convert.options.keras_objects.constraints import NonNeg
from syncbn_convert.options.optimizers import Adam
from syncbn_convert.options.training import Checkpointing
from tests.training.digits import TEST, UNTRAINED, batches_file
from tests.training.test_steps import form, small_data, small_model
from tests.xla.beside import CLASSES, require_alike, trained
from tests.xla.conftest import InChild


def twenty_steps(folder: Path, devices: int) -> None:
    data = batches_file(folder, 20, 32)
    require_alike(UNTRAINED, data, batch_size=32, devices=devices, eval_data=TEST)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.sweep), 4])
def test_digits(devices: int, tmp_path: Path, in_child: InChild) -> None:
    """Twenty steps in which no rounding decides whether a Relu is open.

    Where one does, losses part by up to 1e-3, also those of 1 and 3 replicas on ONNX Runtime: with
    batches of 28 and 30 that happens in the eighth step.
    """
    in_child(twenty_steps, tmp_path, devices)


def uneven_pieces(folder: Path) -> None:
    require_alike(UNTRAINED, batches_file(folder, 7, 30), batch_size=30, eval_data=TEST)


@pytest.mark.sweep
def test_pieces_of_7_and_8_samples(tmp_path: Path, in_child: InChild) -> None:
    in_child(uneven_pieces, tmp_path)


def last_batch(folder: Path) -> None:
    require_alike(UNTRAINED, batches_file(folder, 1, 35), batch_size=32)


def test_last_batch_leaves_a_device_without_samples(tmp_path: Path, in_child: InChild) -> None:
    in_child(last_batch, tmp_path)


def accumulated(folder: Path) -> None:
    require_alike(UNTRAINED, batches_file(folder, 3, 31), batch_size=31, accumulate=2)


def test_micro_batches(tmp_path: Path, in_child: InChild) -> None:
    in_child(accumulated, tmp_path)


def grouped(folder: Path) -> None:
    frozen = dataclasses.replace(
        CLASSES, frozen=("stem_conv", "hidden"), optimizer=Adam(epsilon=0.01)
    )
    data = batches_file(folder, 5, 32)
    require_alike(form(group_size=2), data, frozen, batch_size=32, rate=0.001)


def test_groups_frozen_layers_and_adam(tmp_path: Path, in_child: InChild) -> None:
    in_child(grouped, tmp_path)


def penalized(folder: Path) -> None:
    model = form(gamma_regularizer=Regularizer(l1=0.0, l2=0.25), beta_constraint=NonNeg())
    require_alike(model, batches_file(folder, 5, 31), batch_size=31)


@pytest.mark.sweep
def test_penalty_and_constraint(tmp_path: Path, in_child: InChild) -> None:
    in_child(penalized, tmp_path)


def other_losses(folder: Path) -> None:
    data, step = small_data(folder), StepOptions(loss="mse", labels="label", frozen=("k",))
    require_alike(small_model("y = Mul(h, k)"), data, step, batch_size=7)
    body = "sq = Mul(h, h) z = ReduceMean <keepdims = 0> (sq)"
    own = small_model(f"y = Identity(h) {body}")
    own.graph.output.add(name="z").type.tensor_type.elem_type = 1
    require_alike(own, data, StepOptions(loss="z"), batch_size=7)


def test_other_losses_on_uneven_pieces(tmp_path: Path, in_child: InChild) -> None:
    """The model's own loss is a mean over the samples that are there."""
    in_child(other_losses, tmp_path)


def mixing(folder: Path) -> str:
    model = small_model("y = Softmax <axis = 0> (h)")
    step = StepOptions(loss="mse", labels="label", frozen=("k",))
    with pytest.raises(ConversionError, match="mixes the samples") as caught:
        trained("xla", model, small_data(folder), step, batch_size=7)
    return str(caught.value)


def test_node_that_mixes_samples_is_named(tmp_path: Path, in_child: InChild) -> None:
    message = in_child(mixing, tmp_path)
    assert "(Softmax)" in message
    assert "give a batch size" in message


def resumed(folder: Path) -> None:
    exact = AcceleratorOptions(deterministic=True)
    data = batches_file(folder, 6, 30)
    whole, _ = trained("xla", DROPPING, data, batch_size=30, epochs=2, accelerators=exact)
    keep = Checkpointing(folder=folder / "kept", every=4)
    trained("xla", DROPPING, data, batch_size=30, epochs=1, accelerators=exact, checkpointing=keep)
    again = dataclasses.replace(keep, resume=True)
    found, report = trained(
        "xla", DROPPING, data, batch_size=30, epochs=2, accelerators=exact, checkpointing=again
    )
    assert report.resumed_at == 4
    for name, value in whole.items():
        assert found[name].tobytes() == value.tobytes(), name
    other, _ = trained("xla", DROPPING, data, batch_size=30, epochs=2, seed=1)
    assert any(np.any(other[name] != value) for name, value in whole.items())


def test_resumed_run_has_the_same_bits_with_dropout(tmp_path: Path, in_child: InChild) -> None:
    in_child(resumed, tmp_path)


def _dropping() -> onnx.ModelProto:
    """The digits classifier with a Dropout before its last product."""
    model = onnx.load(UNTRAINED)
    nodes = list(model.graph.node)
    last = next(node for node in nodes if "logits/kernel" in node.input)
    dropped = last.input[0]
    last.input[0] = "dropped"
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.asarray(0.25, np.float32), "ratio"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(True), "drops"))
    drop = helper.make_node("Dropout", [dropped, "ratio", "drops"], ["dropped"], "drop")
    graph.node.insert(nodes.index(last), drop)
    return model


DROPPING = _dropping()
