"""The update graph against Keras's optimizers, over several steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx_ir as ir
import pytest

from syncbn_convert import ConvertOptions, SyncBatchNormalizationOptions, convert
from syncbn_convert.errors import ConversionError, UsageError
from syncbn_convert.files import model_file
from syncbn_convert.form import buckets, provenance, training_info
from syncbn_convert.options.keras_objects.constraints import NonNeg
from syncbn_convert.options.optimizers import (
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    Sgd,
    optimizer_from,
)
from syncbn_convert.passes import PackGradients, UpdateParameters
from syncbn_convert.training.update_model import update_model
from tests.harness import apply_and_check, run
from tests.models import batchnorm_model, make_layer
from tests.parity.keras_optimizers import Case, compute

Array = npt.NDArray[Any]

STEPS = 6
RATES = (0.01, 0.02, 0.05, 0.02, 0.01, 0.005)
SHAPES = {"a": (3, 2), "b": (), "c": (4,)}
ROUNDINGS = 8
"""Of each element in one step, at most."""
OF_ADAM = 3e-5
"""1 - 0.999^t loses to a last digit of the power what it is smaller than it: 6e-8 / 0.002."""


TOLERANCE = STEPS * ROUNDINGS * float(np.finfo(np.float32).eps) / 2 + sum(RATES) * OF_ADAM
"""For float64, too: Keras rounds the numbers of an optimizer to float32 there."""


def with_gradients(dtype: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> ir.Model:
    """A model whose parameters have the inputs g_<name> as their gradients."""
    element = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))
    random = np.random.default_rng(0)
    graph = oh.make_graph(
        [oh.make_node("Identity", [f"g_{name}"], [f"{name}.grad"]) for name in shapes],
        "g",
        [oh.make_tensor_value_info(f"g_{name}", element, shape) for name, shape in shapes.items()],
        [
            oh.make_tensor_value_info(f"{name}.grad", element, shape)
            for name, shape in shapes.items()
        ],
        [
            onh.from_array(np.asarray(random.normal(size=shape)).astype(dtype), name)
            for name, shape in shapes.items()
        ],
    )
    opsets = [oh.make_opsetid("", 18)]
    model = model_file.as_model(oh.make_model(graph, opset_imports=opsets, ir_version=10))
    for node in model.graph:
        provenance.mark_gradient(node, str(node.outputs[0].name).removesuffix(".grad"))
    return model


def gradients(dtype: str) -> list[list[Array]]:
    random = np.random.default_rng(1)
    return [
        [np.asarray(random.normal(size=shape)).astype(dtype) for shape in SHAPES.values()]
        for _ in range(STEPS)
    ]


def run_steps(model: ir.Model, given: list[list[Array]]) -> dict[str, Array]:
    """Parameters and slots after the steps, by their names."""
    update = update_model(model)
    state = {
        **{name: tensor.const_value.numpy() for name, tensor in _initializers(model)},
        **update.initial_slots(),
    }
    for number, (rate, values) in enumerate(zip(RATES, given, strict=True), start=1):
        feeds = dict(state)
        by_name = dict(zip(SHAPES, values, strict=True))
        for bucket in buckets.get(model):
            flat = buckets.zeros(bucket)
            for name, part in bucket.parts(flat).items():
                part[...] = by_name[name]
            feeds[bucket.name] = flat
        feeds[update.step] = np.array(number)
        feeds[update.learning_rate] = np.array(rate, dtype=np.float32)
        outputs = run(update.proto, feeds)
        state = {
            name: outputs[output] for name, output in {**update.parameters, **update.slots}.items()
        }
    return state


def _initializers(model: ir.Model) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in model.graph.initializers.items())


EXCLUDED = "excluded"
"""Key of the variables, by number, that Keras leaves out of the weight decay."""
CASES: list[tuple[Optimizer, str, dict[str, Any]]] = [
    (Sgd(), "SGD", {}),
    (Sgd(momentum=0.9), "SGD", {"momentum": 0.9}),
    (Sgd(momentum=0.8, nesterov=True), "SGD", {"momentum": 0.8, "nesterov": True}),
    (Sgd(momentum=0.9, weight_decay=0.1), "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    (Adam(), "Adam", {}),
    (
        Adam(beta_1=0.8, beta_2=0.99, epsilon=1e-3, weight_decay=0.2),
        "Adam",
        {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3, "weight_decay": 0.2},
    ),
    (AdamW(), "AdamW", {}),
    (AdamW(weight_decay=0.3), "AdamW", {"weight_decay": 0.3}),
    (RMSprop(), "RMSprop", {}),
    (
        RMSprop(rho=0.8, momentum=0.7, epsilon=1e-3, weight_decay=0.1),
        "RMSprop",
        {"rho": 0.8, "momentum": 0.7, "epsilon": 1e-3, "weight_decay": 0.1},
    ),
    (Sgd(momentum=0.9, clip_norm=0.5), "SGD", {"momentum": 0.9, "global_clipnorm": 0.5}),
    (Sgd(clip_norm=100.0), "SGD", {"global_clipnorm": 100.0}),
    (Adam(clip_norm=1.5), "Adam", {"global_clipnorm": 1.5}),
    (
        Sgd(weight_decay=0.3, no_decay=("^a$", "c")),
        "SGD",
        {"weight_decay": 0.3, EXCLUDED: (0, 2)},
    ),
    (
        AdamW(weight_decay=0.3, decay_kernels_only=True),
        "AdamW",
        {"weight_decay": 0.3, EXCLUDED: (1, 2)},
    ),
]


def test_equals_keras(tmp_path: Path) -> None:
    pairs = [(case, dtype) for case in CASES for dtype in ("float32", "float64")]
    models = {dtype: with_gradients(dtype) for dtype in ("float32", "float64")}
    wanted = compute(
        [
            Case(
                optimizer=name,
                options={key: value for key, value in options.items() if key != EXCLUDED},
                excluded=options.get(EXCLUDED, ()),
                rates=RATES,
                weights=[value.const_value.numpy() for _, value in _initializers(models[dtype])],
                gradients=gradients(dtype),
            )
            for (_, name, options), dtype in pairs
        ],
        tmp_path,
    )
    for index, ((optimizer, _, _), dtype) in enumerate(pairs):
        model = model_file.as_model(models[dtype])
        PackGradients(bucket_bytes=24)(model)
        UpdateParameters(optimizer=optimizer)(model)
        found = run_steps(model, gradients(dtype))
        expected = [f"{index}/{number}" for number in range(len(SHAPES))]
        names = list(SHAPES)
        for slot in optimizer.slots:
            names += [f"{name}.{slot}" for name in SHAPES]
        expected += [
            f"{index}/slots/{number}" for number in range(len(optimizer.slots) * len(SHAPES))
        ]
        keras_order = _keras_slots(optimizer, expected[len(SHAPES) :])
        for name, key in zip(names, [*expected[: len(SHAPES)], *keras_order], strict=True):
            reference = wanted[key].astype(np.float64)
            assert found[name].dtype == wanted[key].dtype
            error = np.max(np.abs(found[name] - reference)) / np.max(np.abs(reference))
            assert error <= TOLERANCE, f"{optimizer} {dtype} {name}: {error:.2g}"


def _keras_slots(optimizer: Optimizer, keys: list[str]) -> list[str]:
    """Keras keeps the slots of one variable after the other, but for RMSprop."""
    if isinstance(optimizer, RMSprop):
        return keys
    count = len(optimizer.slots)
    return [keys[number] for start in range(count) for number in range(start, len(keys), count)]


def test_constraint_projects_what_the_update_makes() -> None:
    """Keras's NonNeg: the updated gamma, negative ones set to 0; momentum goes on unprojected."""
    options = SyncBatchNormalizationOptions(gamma_constraint=NonNeg())
    form = convert(
        batchnorm_model(make_layer(4), ["n", 4], opset=18),
        ConvertOptions(parameters=options),
        verify=False,
    )
    assert isinstance(form, onnx.ModelProto)
    model = model_file.as_model(form)
    gradient = ir.node("Identity", [model.graph.initializers["s"]], num_outputs=1)
    gradient.outputs[0].name = "s.grad"
    gradient.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    gradient.outputs[0].shape = ir.Shape([4])
    provenance.mark_gradient(gradient, "s")
    model.graph.append(gradient)
    model.graph.outputs.append(gradient.outputs[0])
    PackGradients()(model)
    UpdateParameters(optimizer=Sgd(momentum=0.5))(model)
    assert training_info.update_bindings(model)["s"] == "s.projected"
    update = update_model(model)
    weight = np.array([1, 1, -1, 2], dtype=np.float32)
    change = np.array([3, 0.5, -1, 1], dtype=np.float32)
    outputs = run(
        update.proto,
        {
            "s": weight,
            "s.momentum": np.zeros(4, np.float32),
            "gradient.bucket.0": change,
            "step": np.array(1),
            "learning_rate": np.array(0.5, dtype=np.float32),
        },
    )
    np.testing.assert_array_equal(outputs["s.momentum.next"], -0.5 * change)
    np.testing.assert_array_equal(
        outputs[update.parameters["s"]], np.maximum(weight - 0.5 * change, 0)
    )


@pytest.mark.parametrize("bucket_bytes", [1, 24, 1 << 20])
def test_packed_gradients_are_where_the_metadata_says(bucket_bytes: int) -> None:
    model = model_file.to_proto(with_gradients("float32"))
    random = np.random.default_rng(2)
    given = {
        f"g_{name}": np.asarray(random.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    names = [f"{name}.grad" for name in SHAPES]
    count = {1: 3, 24: 2, 1 << 20: 1}[bucket_bytes]
    packed, result = apply_and_check(
        PackGradients(bucket_bytes=bucket_bytes),
        model,
        removed_outputs=names,
        added_outputs=[f"gradient.bucket.{number}" for number in range(count)],
    )
    assert [record.node for record in result.records] == list(SHAPES)
    outputs = run(packed, given)
    found: dict[str, Array] = {}
    for bucket in buckets.get(model_file.as_model(packed)):
        found.update(bucket.parts(outputs[bucket.name]))
    for name in SHAPES:
        np.testing.assert_array_equal(found[name], given[f"g_{name}"])


def test_update_is_an_honest_pass() -> None:
    model = with_gradients("float32")
    PackGradients()(model)
    proto = model_file.to_proto(model)
    rewritten, _ = apply_and_check(UpdateParameters(optimizer=Adam()), proto)
    (entry,) = rewritten.training_info
    assert [info.name for info in entry.algorithm.input] == [
        "learning_rate",
        "step",
        "gradient.bucket.0",
    ]
    bound = {pair.key: pair.value for pair in entry.update_binding}
    assert bound["a"] == "a.next"
    assert bound["c.velocity"] == "c.velocity.next"
    assert {slot.values.name for slot in entry.algorithm.sparse_initializer} == {
        f"{name}.{slot}" for name in SHAPES for slot in ("momentum", "velocity")
    }


def test_refusals() -> None:
    model = with_gradients("float32")
    with pytest.raises(ConversionError, match="returns no buckets of gradients"):
        UpdateParameters(optimizer=Sgd()).call(model)
    PackGradients()(model)
    UpdateParameters(optimizer=Sgd())(model)
    with pytest.raises(ConversionError, match="has the optimizer"):
        UpdateParameters(optimizer=Adam()).call(model)
    with pytest.raises(ConversionError, match="parameter 'a' has element type FLOAT16"):
        PackGradients().call(with_gradients("float16"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lion", {}, "choose sgd, adam, adamw"),
        ("adam", {"momentum": 0.9}, "the optimizer adam has no momentum"),
        ("sgd", {"nesterov": True}, "give a momentum above 0"),
        ("sgd", {"momentum": 1.0}, "give a share from 0 up to"),
        ("adamw", {"weight_decay": -1.0}, "weight decay -1: give"),
        ("adam", {"epsilon": float("nan")}, "epsilon nan"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        optimizer_from(name, **options)


def test_no_decay_that_matches_nothing_is_refused() -> None:
    model = with_gradients("float32")
    PackGradients()(model)
    with pytest.raises(ConversionError, match="--no-decay 'bn' matches no parameter"):
        UpdateParameters(optimizer=Sgd(weight_decay=0.1, no_decay=("bn",)))(model)


@pytest.mark.parametrize(
    "options", [{"no_decay": ("a",)}, {"decay_kernels_only": True}, {"clip_norm": 0.0}]
)
def test_options_without_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sgd(**options)
