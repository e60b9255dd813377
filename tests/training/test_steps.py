"""What one update does: penalties, constraints, micro-batches, groups, overridable inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest

import syncbn_convert
from syncbn_convert import (
    Checkpointing,
    ConvertOptions,
    ReplicaOptions,
    StepOptions,
    SyncBatchNormalizationOptions,
    TrainOptions,
    convert,
)
from syncbn_convert.commands.train import train, train_with_report
from syncbn_convert.errors import ConversionError, ReplicaError, UsageError
from syncbn_convert.files import model_file
from syncbn_convert.options.keras_objects import Regularizer
from syncbn_convert.options.keras_objects.constraints import NonNeg
from syncbn_convert.options.optimizers import Sgd
from syncbn_convert.options.schedules import Schedule
from syncbn_convert.training.step_models import build

from .digits import SGD, UNTRAINED, batches_file, require_close, train_digits, weights_of

RATE = 0.1
ROUNDING = 1e-6
"""A few roundings of float32, relative to the largest magnitude of a tensor."""


def form(**options: Any) -> onnx.ModelProto:
    found = convert(
        onnx.load(UNTRAINED),
        ConvertOptions(parameters=SyncBatchNormalizationOptions(**options)),
        verify=False,
    )
    assert isinstance(found, onnx.ModelProto)
    return found


@pytest.mark.parametrize("replicas", [1, 3])
def test_penalty_counts_once(replicas: int, tmp_path: Path) -> None:
    """d/dgamma of l2 * gamma^2 is 2 * l2 * gamma, however many replicas there are."""
    data = batches_file(tmp_path, 1, 30)
    settings: dict[str, Any] = {"optimizer": Sgd(), "learning_rate": RATE, "batch_size": 30}
    without, _ = train_digits(data, replicas, **settings, model=form())
    penalized = form(gamma_regularizer=Regularizer(l1=0.0, l2=0.25))
    found, report = train_digits(data, replicas, **settings, model=penalized)
    for name, value in weights_of(onnx.load(UNTRAINED)).items():
        if name.endswith("gamma"):
            wanted = without[name] - RATE * 2 * 0.25 * value
            assert np.max(np.abs(found[name] - wanted)) <= ROUNDING
    _, plain = train_digits(data, replicas, **settings, model=form())
    channels = 32 * 3 + 64 * 2
    assert report.losses[0] - plain.losses[0] == pytest.approx(0.25 * channels, rel=ROUNDING)


def test_constraint_holds_after_every_update(tmp_path: Path) -> None:
    data = batches_file(tmp_path, 4, 30)
    settings: dict[str, Any] = {"optimizer": SGD, "learning_rate": 1.0, "batch_size": 30}
    free, _ = train_digits(data, 2, **settings, model=form())
    bound, _ = train_digits(data, 2, **settings, model=form(beta_constraint=NonNeg()))
    betas = [name for name in free if name.endswith("beta")]
    assert min(free[name].min() for name in betas) < 0
    assert min(bound[name].min() for name in betas) == 0


def test_accumulated_gradient_is_the_mean_of_micro_batches(tmp_path: Path) -> None:
    """Micro-batches of 16 and 15: means weighted by their samples; statistics move twice."""
    with np.load(batches_file(tmp_path, 1, 31)) as arrays:
        data = dict(arrays)
    parts = [slice(0, 15), slice(15, 31)]
    files = [tmp_path / f"part-{index}.npz" for index in range(3)]
    for path, part in zip(files, [*parts, slice(0, 31)], strict=True):
        np.savez(path, **{name: array[part] for name, array in data.items()})
    settings: dict[str, Any] = {"optimizer": Sgd(), "learning_rate": RATE}
    first, second = (train_digits(path, 2, **settings, batch_size=16)[0] for path in files[:2])
    whole, _ = train_digits(files[2], 2, **settings, batch_size=31, accumulate=2)
    still: dict[str, Any] = {"optimizer": Sgd(), "learning_rate": 1e-30}
    states = [train_digits(path, 2, **still, batch_size=16)[0] for path in files[:2]]
    for name, start in weights_of(onnx.load(UNTRAINED)).items():
        if "moving" in name:
            batch = [(state[name] - 0.9 * start) for state in states]
            wanted = 0.9 * (0.9 * start + batch[0]) + batch[1]
        else:
            wanted = (15 * first[name].astype(np.float64) + 16 * second[name]) / 31
        require_close({name: whole[name]}, {name: wanted}, 5 * ROUNDING)


def test_groups_share_the_mean_of_their_statistics(tmp_path: Path) -> None:
    """Two replicas that each normalize by their own piece keep one state: the mean of both."""
    data = batches_file(tmp_path, 1, 32)
    settings: dict[str, Any] = {"optimizer": Sgd(), "learning_rate": 1e-30}
    found, _ = train_digits(data, 2, **settings, batch_size=32, model=form(group_size=1))
    states = []
    with np.load(data) as arrays:
        halves = [{name: array[part] for name, array in arrays.items()} for part in _HALVES]
    for index, half in enumerate(halves):
        path = tmp_path / f"half-{index}.npz"
        np.savez(path, **half)
        states.append(train_digits(path, 1, **settings, batch_size=16)[0])
    moving = [name for name in found if "moving" in name]
    wanted = {name: (states[0][name] + states[1][name].astype(np.float64)) / 2 for name in moving}
    require_close({name: found[name] for name in moving}, wanted, ROUNDING)


_HALVES = (slice(0, 16), slice(16, 32))


def small_model(body: str, inputs: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,3] x{inputs}) => (float[n,3] y)
        <float[3] s = {{1, 1, 1}}, float[3] b = {{0, 0, 0}}, float[3] m = {{0, 0, 0}},
         float[3] v = {{1, 1, 1}}, float[3] k = {{1, 2, 3}}>
        {{ h = BatchNormalization(x, s, b, m, v) {body} }}"""
    )


def small_data(folder: Path) -> Path:
    random = np.random.default_rng(0)
    path = folder / "small.npz"
    x = random.normal(size=(24, 3)).astype(np.float32)
    np.savez(path, x=x, label=x[:, ::-1])
    return path


MSE = StepOptions(loss="mse", labels="label", frozen=("k",))
ONCE = TrainOptions(schedule=Schedule(learning_rate=0.5), batch_size=8)


def test_an_overridable_initializer_that_is_not_trained_keeps_its_value(tmp_path: Path) -> None:
    model = small_model("y = Mul(h, k)", ", float[3] k")
    trained = train(model, small_data(tmp_path), MSE, ONCE, replicas=ReplicaOptions(replicas=2))
    weights = weights_of(trained)
    np.testing.assert_array_equal(weights["k"], [1, 2, 3])
    assert np.any(weights["s"] != 1)


def test_the_models_own_loss_is_weighted_by_samples(tmp_path: Path) -> None:
    """On uneven pieces it trains as the same loss that is added."""
    own = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,3] x, int64[n] label) => (float[n,3] y, float own)
        <float[3] s = {1, 1, 1}, float[3] b = {0, 0, 0}, float[3] m = {0, 0, 0},
         float[3] v = {1, 1, 1}, float[3] k = {1, 2, 3}>
        { h = BatchNormalization(x, s, b, m, v) y = Mul(h, k)
          own = SoftmaxCrossEntropyLoss(y, label) }"""
    )
    random = np.random.default_rng(0)
    path = tmp_path / "classes.npz"
    x = random.normal(size=(23, 3)).astype(np.float32)
    np.savez(path, x=x, label=random.integers(3, size=23))
    added = StepOptions(loss="softmax-cross-entropy", labels="label")
    runs = [
        train_with_report(
            model, path, options, ONCE, eval_data=path, replicas=ReplicaOptions(replicas=3)
        )
        for model, options in (
            (own, StepOptions(loss="own")),
            (small_model("y = Mul(h, k)"), added),
        )
    ]
    (mine, report), (theirs, reference) = runs
    require_close(weights_of(mine), weights_of(theirs), ROUNDING)
    np.testing.assert_allclose(report.losses, reference.losses, rtol=ROUNDING)
    assert report.epochs[0].eval_loss == pytest.approx(reference.epochs[0].eval_loss, rel=ROUNDING)
    assert report.epochs[0].accuracy is None
    assert reference.epochs[0].accuracy is not None


def test_sizes_of_minus_one_are_any_size(tmp_path: Path) -> None:
    """Paddle writes them."""
    model = small_model("y = Mul(h, k)")
    expected = train(model, small_data(tmp_path), MSE, ONCE)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = -1
    data = small_data(tmp_path)
    found, report = train_with_report(model, data, MSE, ONCE, eval_data=data)
    require_close(weights_of(found), weights_of(expected), 0.0)
    assert report.epochs[0].eval_loss is not None


def test_weights_of_constant_nodes_are_noted() -> None:
    model = small_model("c = Constant <value = float[3] {1, 2, 3}>() y = Mul(h, c)")
    models = build(model_file.as_model(model), MSE)
    assert models.notes[0].startswith("1 Constant nodes hold weights, which are not trained")
    assert set(models.parameters) == {"s", "b"}


DROPPING = (
    "t = Constant <value = bool {1}>() r = Constant <value = float {0.5}>() "
    "d = Dropout(h, r, t) y = Mul(d, k)"
)


@pytest.mark.parametrize("replicas", [1, 2])
def test_dropout_follows_from_the_seed_also_when_resumed(replicas: int, tmp_path: Path) -> None:
    model, data = small_model(DROPPING), small_data(tmp_path)
    two = dataclasses.replace(ONCE, epochs=2)

    def trained(options: TrainOptions, **given: Any) -> bytes:
        found = train(
            model, data, MSE, options, replicas=ReplicaOptions(replicas=replicas), **given
        )
        assert isinstance(found, onnx.ModelProto)
        return bytes(found.SerializeToString(deterministic=True))

    whole = trained(two)
    assert trained(two) == whole
    assert trained(dataclasses.replace(two, seed=1)) != whole
    kept = Checkpointing(folder=tmp_path / "kept", every=2)
    trained(ONCE, checkpointing=kept)
    assert trained(two, checkpointing=dataclasses.replace(kept, resume=True)) == whole


def test_dropout_is_off_in_evaluation(tmp_path: Path) -> None:
    """Without an update, the loss of evaluation is that of the model without Dropout."""
    still = dataclasses.replace(ONCE, schedule=Schedule(learning_rate=1e-30))
    data = small_data(tmp_path)
    losses = [
        train_with_report(small_model(body), data, MSE, still, eval_data=data)[1].epochs[0]
        for body in (DROPPING, "y = Mul(h, k)")
    ]
    assert losses[0].eval_loss == pytest.approx(losses[1].eval_loss, rel=ROUNDING)
    assert losses[0].loss > 1.5 * losses[1].loss


def test_what_cannot_be_seeded_is_noted_and_not_resumed(tmp_path: Path) -> None:
    model = small_model(
        "t = Constant <value = float[1,2] {0, 0}>() drawn = Multinomial <sample_size = 1> (t) "
        "f = Cast <to = 1> (drawn) d = Mul(h, f) y = Mul(d, k)"
    )
    _, report = train_with_report(model, small_data(tmp_path), MSE, ONCE)
    assert any("(Multinomial) draws random numbers" in note for note in report.notes)
    with pytest.raises(UsageError, match="draws random numbers, so that a resumed run"):
        train(
            model,
            small_data(tmp_path),
            MSE,
            ONCE,
            checkpointing=Checkpointing(folder=tmp_path / "kept"),
        )


def test_a_form_that_is_not_synchronized_is_refused() -> None:
    subject = model_file.as_model(form(synchronized=False))
    with pytest.raises(ConversionError, match="is not synchronized, and replicas would drift"):
        build(subject, StepOptions(loss="softmax-cross-entropy", labels="label"))


def test_data_that_is_not_finite_names_node_and_replica(tmp_path: Path) -> None:
    path = small_data(tmp_path)
    with np.load(path) as arrays:
        data = dict(arrays)
    data["x"][6] = np.nan
    np.savez(path, **data)
    options = dataclasses.replace(ONCE, shuffle=False)
    message = "batch statistics are not finite in step 1, from replica 1"
    with pytest.raises(ReplicaError, match=message):
        train(
            small_model("y = Mul(h, k)"),
            path,
            MSE,
            options,
            replicas=ReplicaOptions(replicas=2, timeout=30),
        )


def test_argument_is_not_changed_and_its_type_comes_back(tmp_path: Path) -> None:
    model = small_model("y = Mul(h, k)")
    before = model.SerializeToString(deterministic=True)
    trained = train(model, small_data(tmp_path), MSE, ONCE)
    assert isinstance(trained, onnx.ModelProto)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("saved_by", ["convert", "onnx"])
def test_weights_in_external_data_train_as_those_inside(
    saved_by: str, replicas: int, tmp_path: Path
) -> None:
    model = onnx.load(UNTRAINED)
    outside = tmp_path / "outside.onnx"
    if saved_by == "convert":
        syncbn_convert.convert_file(UNTRAINED, outside, verify=False, save_as_external_data=True)
    else:
        onnx.save(onnx.load(UNTRAINED), outside, save_as_external_data=True, size_threshold=128)
    data = tmp_path / "data.npz"
    with np.load(UNTRAINED.parent / "digits_train.npz") as arrays:
        np.savez(data, image=arrays["image"][:64], label=arrays["label"][:64])
    step = StepOptions(loss="softmax-cross-entropy", labels="label")
    options = TrainOptions(schedule=Schedule(learning_rate=0.01), batch_size=32)
    trained = [
        syncbn_convert.train(
            argument, data, step, options, replicas=ReplicaOptions(replicas=replicas)
        )
        for argument in (model, onnx_ir.load(outside), outside)
    ]
    wanted, *others = (
        {
            name: value.const_value.numpy()
            for name, value in model_file.as_model(found).graph.initializers.items()
            if value.const_value is not None
        }
        for found in trained
    )
    for found in others:
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
