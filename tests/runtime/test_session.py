"""What replicas compute together equals what one computes on all of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import syncbn_convert
from syncbn_convert import ReplicaError, ReplicaSession, UsageError, run_replicas
from syncbn_convert.runtime import Communicator
from syncbn_convert.runtime.replica_threads import on_threads
from syncbn_convert.runtime.session import LoadedForm, StepResult
from tests import oracle
from tests.models import DIGITS, batchnorm_model, make_layer

Array = npt.NDArray[Any]
State = dict[str, Array]

EPS = float(np.finfo(np.float32).eps)
UNEVEN = (7, 25, 1, 0)


def form_of(
    layer: oracle.Layer,
    spatial: Sequence[int] = (),
    *,
    group_size: int = 0,
    unbiased: int = 0,
    calls: int = 1,
) -> onnx.ModelProto:
    """The training form of one layer, called once or several times in a row."""
    model = batchnorm_model(layer, ["n", len(layer.scale), *spatial])
    for call in range(1, calls):
        again = onnx.NodeProto()
        again.CopyFrom(model.graph.node[0])
        again.name, again.input[0], again.output[0] = f"norm{call}", f"y{call}", "y"
        model.graph.node[-1].output[0] = f"y{call}"
        model.graph.node.append(again)
    form = syncbn_convert.convert(model, verify=False)
    assert isinstance(form, onnx.ModelProto)
    wanted = {"group_size": group_size, "unbiased": unbiased}
    for node in form.graph.node:
        for attribute in node.attribute:
            if attribute.name in wanted:
                attribute.i = wanted[attribute.name]
    return form


def draw(
    sizes: Sequence[int], shape: Sequence[int], *, seed: int = 0, mean: float = 2.0
) -> list[Array]:
    random = np.random.default_rng(seed)
    return [(random.normal(size=(n, *shape)) * 3 + mean).astype(np.float32) for n in sizes]


def train(
    model: onnx.ModelProto, batches: Sequence[Sequence[Array]], name: str = "x"
) -> list[tuple[list[StepResult], State]]:
    """Run the steps, one piece of each batch a replica; return results and state by replica."""
    form = LoadedForm(model)

    def replica(communicator: Communicator) -> tuple[list[StepResult], State]:
        session = ReplicaSession(form, communicator)
        results = [session.step({name: pieces[communicator.rank]}) for pieces in batches]
        return results, session.state

    return on_threads(len(batches[0]), replica, timeout=30)


def assert_near(got: Array, wanted: Array, units: float = 16.0) -> None:
    """Compare within `units` in the last place of the largest magnitude."""
    assert got.shape == wanted.shape
    scale = float(np.max(np.abs(wanted), initial=0.0))
    error = float(np.max(np.abs(got.astype(np.float64) - wanted), initial=0.0))
    assert error <= units * EPS * scale


CASES = [
    (channels, spatial, mean, seed)
    for seed, (channels, spatial, mean) in enumerate(
        [
            (1, (), 0.0),
            (4, (), 5.0),
            (3, (5,), 2.0),
            (2, (4, 3), -2.0),
            (6, (1, 1), 0.0),
            (3, (2, 3, 2), 1.0),
            (5, (2, 1, 2, 3), 0.5),
        ]
    )
]


@pytest.mark.parametrize(("channels", "spatial", "mean", "seed"), CASES)
def test_uneven_pieces_equal_the_definition_and_one_replica(
    channels: int, spatial: tuple[int, ...], mean: float, seed: int
) -> None:
    layer = make_layer(channels)
    form = form_of(layer, spatial)
    pieces = draw(UNEVEN, (channels, *spatial), seed=seed, mean=mean)
    step = oracle.train(layer, pieces)
    (together,) = run_replicas(form, [{"x": np.concatenate(pieces)}])
    found = run_replicas(form, [{"x": piece} for piece in pieces])
    for outputs, wanted in zip(found, step.outputs, strict=True):
        assert_near(outputs["y"], wanted)
        assert_near(outputs["m.next"], step.mean)
        assert_near(outputs["v.next"], step.var)
    assert_near(np.concatenate([outputs["y"] for outputs in found]), together["y"])
    assert_near(found[0]["m.next"], together["m.next"])
    assert_near(found[0]["v.next"], together["v.next"])


def test_all_replicas_hold_the_same_bits() -> None:
    batches = [draw(UNEVEN, (3, 4), seed=seed) for seed in range(3)]
    found = train(form_of(make_layer(3), [4]), batches)
    for _, state in found[1:]:
        for name, value in state.items():
            assert value.tobytes() == found[0][1][name].tobytes()


def test_two_runs_give_the_same_bits() -> None:
    form = form_of(make_layer(3), [4])
    batches = [draw(UNEVEN, (3, 4), seed=seed) for seed in range(3)]
    first, second = train(form, batches), train(form, batches)
    for (steps, state), (steps_again, state_again) in zip(first, second, strict=True):
        for result, again in zip(steps, steps_again, strict=True):
            assert result.outputs["y"].tobytes() == again.outputs["y"].tobytes()
        for name, value in state.items():
            assert value.tobytes() == state_again[name].tobytes()


def test_a_step_without_any_sample_changes_nothing() -> None:
    layer = make_layer(3)
    empty = draw((0, 0), (3, 4))
    for (result,), state in train(form_of(layer, [4]), [empty]):
        assert result.outputs["y"].shape == (0, 3, 4)
        assert np.array_equal(state["m"], layer.mean)
        assert np.array_equal(state["v"], layer.var)
        assert np.array_equal(result.totals[0], np.zeros(7))


@pytest.mark.parametrize("unbiased", [0, 1])
def test_an_empty_piece_changes_no_bit_of_the_others(unbiased: int) -> None:
    form = form_of(make_layer(3), [4], unbiased=unbiased)
    *pieces, empty = draw((1, 2, 0), (3, 4))
    alone = train(form, [pieces])
    for rank, ((result,), state) in enumerate(train(form, [[*pieces, empty]])):
        (wanted,), wanted_state = alone[rank % 2]
        assert result.totals[0].tobytes() == wanted.totals[0].tobytes()
        for name, value in wanted_state.items():
            assert state[name].tobytes() == value.tobytes()
        if rank < 2:
            assert result.outputs["y"].tobytes() == wanted.outputs["y"].tobytes()


def test_unbiased_variance_divides_by_one_less_than_all_values() -> None:
    layer = make_layer(3)
    pieces = draw((2, 1, 0), (3,))
    step = oracle.train(layer, pieces)
    keep = float(np.float32(layer.momentum))
    var = np.concatenate(pieces).astype(np.float64).var(axis=0, ddof=1)
    for rank, ((result,), state) in enumerate(train(form_of(layer, unbiased=1), [pieces])):
        assert_near(result.outputs["y"], step.outputs[rank])
        assert_near(state["m"], step.mean)
        assert_near(state["v"], layer.var * keep + var * (1 - keep))


def test_one_value_has_no_unbiased_variance_and_changes_nothing() -> None:
    layer = make_layer(3)
    for _, state in train(form_of(layer, unbiased=1), [draw((0, 1), (3,))]):
        assert np.array_equal(state["m"], layer.mean)
        assert np.array_equal(state["v"], layer.var)


def test_totals_are_count_and_moments_of_the_union() -> None:
    pieces = draw(UNEVEN, (3, 4))
    rows = np.moveaxis(np.concatenate(pieces), 1, -1).reshape(-1, 3).astype(np.float64)
    ((result,), _), *_ = train(form_of(make_layer(3), [4]), [pieces])
    (total,) = result.totals
    assert total.dtype == np.float64
    assert total[0] == sum(UNEVEN) * 4
    assert_near(total[1:4], rows.sum(axis=0))
    assert_near(total[4:], (rows**2).sum(axis=0))


def test_state_is_kept_between_steps() -> None:
    layer = make_layer(3)
    batches = [draw(sizes, (3, 4), seed=sum(sizes)) for sizes in ((4, 2), (1, 9), (0, 5), (3, 3))]
    mean, var = layer.mean, layer.var
    for pieces in batches:
        step = oracle.train(
            oracle.Layer(layer.scale, layer.bias, mean, var, layer.epsilon, layer.momentum), pieces
        )
        mean, var = step.mean, step.var
    for _, state in train(form_of(layer, [4]), batches):
        assert_near(state["m"], mean)
        assert_near(state["v"], var)


def test_load_state_replaces_what_it_names() -> None:
    layer = make_layer(3)
    (x,) = draw((6,), (3, 4))
    session = ReplicaSession(form_of(layer, [4]))
    session.step({"x": x})
    var = session.state["v"]
    session.load_state({"m": np.array([1, 2, 3], np.float32)})
    assert np.array_equal(session.state["m"], [1, 2, 3])
    assert np.array_equal(session.state["v"], var)
    session.step({"x": x})
    started = oracle.Layer(
        layer.scale, layer.bias, np.array([1.0, 2.0, 3.0]), var, layer.epsilon, layer.momentum
    )
    step = oracle.train(started, [x])
    assert_near(session.state["m"], step.mean)
    assert_near(session.state["v"], step.var)


def test_state_belongs_to_the_session() -> None:
    """No array that went in or came out is the state itself."""
    layer = make_layer(3)
    form = LoadedForm(form_of(layer, [4]))
    session, other = ReplicaSession(form), ReplicaSession(form)
    loaded = np.ones(3, np.float32)
    session.load_state({"m": loaded})
    loaded += 1
    handed_out = other.state["v"]
    handed_out += 1
    assert np.array_equal(session.state["m"], np.ones(3))
    assert np.array_equal(other.state["v"], layer.var)
    assert np.array_equal(ReplicaSession(form).state["v"], layer.var)
    result = session.step({"x": draw((6,), (3, 4))[0]})
    moved = session.state["m"]
    result.outputs["m.next"][:] = 0
    assert np.array_equal(session.state["m"], moved)


def test_a_step_can_leave_the_state_alone() -> None:
    layer = make_layer(3)
    (x,) = draw((6,), (3, 4))
    session = ReplicaSession(form_of(layer, [4]))
    result = session.step({"x": x}, update=False)
    assert np.array_equal(session.state["m"], layer.mean)
    assert_near(result.outputs["m.next"], oracle.train(layer, [x]).mean)


def test_a_layer_called_twice_moves_its_state_twice() -> None:
    layer = make_layer(3)
    pieces = draw(UNEVEN, (3, 4))
    first = oracle.train(layer, pieces)
    moved = oracle.Layer(
        layer.scale, layer.bias, first.mean, first.var, layer.epsilon, layer.momentum
    )
    second = oracle.train(moved, first.outputs)
    form = form_of(layer, [4], calls=2)
    (called_twice,) = LoadedForm(form).layers
    assert called_twice.calls == [0, 1]
    for rank, ((result,), state) in enumerate(train(form, [pieces])):
        assert_near(result.outputs["y"], second.outputs[rank])
        assert_near(state["m"], second.mean)
        assert_near(state["v"], second.var)


def test_groups_have_statistics_of_their_own() -> None:
    layer = make_layer(3)
    pieces = draw((7, 2, 0, 5), (3, 4))
    found = train(form_of(layer, [4], group_size=2), [pieces])
    for first in (0, 2):
        step = oracle.train(layer, pieces[first : first + 2])
        for rank in (first, first + 1):
            (result,), state = found[rank]
            assert_near(result.outputs["y"], step.outputs[rank - first])
            assert_near(state["m"], step.mean)
            assert_near(state["v"], step.var)
    assert np.max(np.abs(found[0][1]["m"] - found[2][1]["m"])) > 0.01


def test_groups_have_to_come_out_even() -> None:
    form = form_of(make_layer(3), [4], group_size=2)
    with pytest.raises(ReplicaError, match="groups of 2 do not divide 3 replicas"):
        train(form, [draw((1, 1, 1), (3, 4))])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_node_and_replica(bad: float) -> None:
    good, poisoned = draw(UNEVEN, (3, 4)), draw(UNEVEN, (3, 4))
    poisoned[1][2, 0, 0] = bad
    with pytest.raises(ReplicaError) as caught:
        train(form_of(make_layer(3), [4], calls=2), [good, poisoned])
    assert str(caught.value) == (
        "node 'norm': batch statistics are not finite in step 2, from replica 1; look for NaN or "
        "infinity in its data, or overflow before the node"
    )


def test_a_value_that_is_not_finite_in_one_group_names_its_replica() -> None:
    pieces = draw((4, 4, 4, 4), (3, 4))
    pieces[3][0, 0, 0] = np.nan
    with pytest.raises(ReplicaError, match=r"node 'norm'.* in step 1, from replica 3;"):
        train(form_of(make_layer(3), [4], group_size=2), [pieces])


def test_a_model_without_the_form_is_refused() -> None:
    with pytest.raises(UsageError, match="no training form"):
        ReplicaSession(batchnorm_model(make_layer(3), ["n", 3]))


def test_float16_state_keeps_its_dtype() -> None:
    layer = make_layer(3, dtype=np.float16)
    model = batchnorm_model(layer, ["n", 3, 4], dtype=np.float16)
    form = syncbn_convert.convert(model, verify=False)
    assert isinstance(form, onnx.ModelProto)
    pieces = [piece.astype(np.float16) for piece in draw(UNEVEN, (3, 4))]
    step = oracle.train(layer, pieces)
    for _, state in train(form, [pieces]):
        assert state["m"].dtype == state["v"].dtype == np.float16
        np.testing.assert_allclose(state["v"], step.var, rtol=float(np.finfo(np.float16).eps))


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
def test_variance_survives_means_far_from_zero_and_from_each_other(ratio: float) -> None:
    layer = make_layer(3, momentum=0.0)
    near, far = draw((9, 23), (3, 8), mean=3 * ratio)
    pieces = [near, (far + np.float32(ratio / 100)).astype(np.float32)]
    exact = oracle.train(layer, pieces).var
    for _, state in train(form_of(layer, [8]), [pieces]):
        np.testing.assert_allclose(state["v"], exact, rtol=1e-3)


@pytest.fixture(scope="module")
def digits() -> LoadedForm:
    return LoadedForm(syncbn_convert.convert(onnx.load_model(DIGITS), verify=False))


@pytest.fixture(scope="module")
def digits_alone(digits: LoadedForm) -> State:
    session = ReplicaSession(digits)
    for x in digits_batches():
        session.step({"image": x})
    return session.state


def digits_batches() -> list[Array]:
    random = np.random.default_rng(0)
    return [random.uniform(size=(37, 8, 8, 1)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("replicas", [2, 3, 4, 8])
def test_statistics_of_a_network_do_not_depend_on_the_number_of_replicas(
    replicas: int, digits: LoadedForm, digits_alone: State
) -> None:
    batches = [np.array_split(x, replicas) for x in digits_batches()]

    def replica(communicator: Communicator) -> State:
        session = ReplicaSession(digits, communicator)
        for pieces in batches:
            session.step({"image": pieces[communicator.rank]})
        return session.state

    assert len(digits_alone) == 2 * len(digits.nodes)
    for state in on_threads(replicas, replica, timeout=30):
        assert state.keys() == digits_alone.keys()
        for name, value in digits_alone.items():
            assert np.max(np.abs(state[name] - value)) <= 1e-6 * np.max(np.abs(value)), name


def test_fed_moving_statistics_count_for_the_step() -> None:
    layer = make_layer(3)
    form = form_of(layer)
    pieces = draw((4, 6), (3,))
    fed = {"m": np.array([5, 6, 7], np.float32), "v": np.array([2, 3, 4], np.float32)}
    outputs = run_replicas(form, [{"x": piece, **fed} for piece in pieces])
    whole = np.concatenate(pieces).astype(np.float64)
    keep = np.float64(np.float32(layer.momentum))
    wanted_mean = fed["m"] * keep + whole.mean(0) * (1 - keep)
    wanted_var = fed["v"] * keep + whole.var(0) * (1 - keep)
    for replica in outputs:
        np.testing.assert_allclose(replica["m.next"], wanted_mean, rtol=8 * EPS)
        np.testing.assert_allclose(replica["v.next"], wanted_var, rtol=8 * EPS)


def test_state_goes_on_from_fed_statistics() -> None:
    session = ReplicaSession(form_of(make_layer(2)))
    x = draw((5,), (2,))[0]
    first = session.step({"x": x, "m": np.full(2, 9, np.float32)}).outputs
    np.testing.assert_array_equal(session.state["m"], first["m.next"])
    again = session.step({"x": x}).outputs
    assert not np.array_equal(again["m.next"], first["m.next"])
