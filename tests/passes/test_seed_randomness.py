"""Random numbers against SplitMix64 in NumPy, and what they have to be like."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from syncbn_convert.files import model_file
from syncbn_convert.form import provenance
from syncbn_convert.graph import random_nodes
from syncbn_convert.passes import SeedRandomness, SwitchRandomnessOn
from tests.harness import run

MODEL = """<ir_version: 10, opset_import: ["" : 18]>
g (float[n,3] x) => (float[n,3] y, bool[n,3] kept, float[n,3] u, float[n,3] z, float[n,3] b)
{ t = Constant <value = bool {1}>() r = Constant <value = float {0.3}>()
  y, kept = Dropout(x, r, t) u = RandomUniformLike <low = 2.0, high = 4.0> (x)
  z = RandomNormalLike <mean = 1.0, scale = 2.0> (x)
  p = Constant <value = float {0.2}>() s = Shape(x) e = Expand(p, s) b = Bernoulli(e) }"""
COUNT = 40_000
SALT = 0xD1B54A32D192ED03


def seeded() -> onnx.ModelProto:
    model = model_file.as_model(onnx.parser.parse_model(MODEL))
    assert SeedRandomness()(model).modified
    assert not list(random_nodes.find(model))
    proto = model_file.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def split_mix(key: int, salt: int) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        z = np.arange(3 * COUNT, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64((key + salt) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def test_numbers_follow_from_the_key() -> None:
    model = seeded()
    x = np.full((COUNT, 3), 7, np.float32)
    one, again, other = (run(model, {"x": x, "random_key": np.array(key)}) for key in (-5, -5, 11))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
        assert (one[name] != other[name]).mean() > 0.2
    kept = split_mix(11, 2 * SALT) >= np.float32(0.3)
    np.testing.assert_array_equal(other["kept"].ravel(), kept)
    np.testing.assert_allclose(other["y"].ravel(), np.where(kept, 10.0, 0.0), rtol=1e-6)
    uniform = 2 + 2 * split_mix(11, 4 * SALT)
    np.testing.assert_allclose(other["u"].ravel(), uniform, rtol=1e-6)
    np.testing.assert_array_equal(other["b"].ravel(), split_mix(11, 8 * SALT) < np.float32(0.2))


def test_normal_numbers_are_normal() -> None:
    z = run(seeded(), {"x": np.zeros((COUNT, 3), np.float32), "random_key": np.array(3)})["z"]
    deviations = 5 / np.sqrt(z.size)
    assert abs(z.mean() - 1) <= 2 * deviations
    assert abs(z.std() / 2 - 1) <= deviations
    assert abs(np.mean(np.abs(z - 1) < 2) - 0.682689) <= deviations


def test_what_the_caller_decides_is_left_alone() -> None:
    text = MODEL.replace("(float[n,3] x)", "(float[n,3] x, bool t)", 1)
    text = text.replace("t = Constant <value = bool {1}>() ", "")
    model = model_file.as_model(onnx.parser.parse_model(text))
    SeedRandomness()(model)
    assert [node.op_type for node, _, _ in random_nodes.find(model)] == ["Dropout"]


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    [
        ({"kind": "dropout", "rate": 0.25}, 2.0, 2 * np.sqrt(0.25 / 0.75)),
        ({"kind": "dropout", "rate": 0.25, "shared": [1]}, 2.0, 2 * np.sqrt(0.25 / 0.75)),
        ({"kind": "gaussian_dropout", "rate": 0.25}, 2.0, 2 * np.sqrt(0.25 / 0.75)),
        ({"kind": "gaussian_noise", "stddev": 0.5}, 2.0, 0.5),
    ],
    ids=str,
)
def test_layers_of_keras_draw(draw: dict[str, object], mean: float, deviation: float) -> None:
    model = model_file.as_model(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 18]>
            g (float[n,3] x) => (float[n,3] y) { y = Identity(x) }"""
        )
    )
    provenance.mark_draw(next(iter(model.graph)), {"layer": "l", **draw})
    assert SwitchRandomnessOn()(model).modified
    assert not SwitchRandomnessOn()(model).modified
    assert isinstance(model, ir.Model)
    SeedRandomness()(model)
    x = np.full((COUNT, 3), 2, np.float32)
    y = run(model_file.to_proto(model), {"x": x, "random_key": np.array(1)})["y"]
    assert abs(y.mean() - mean) <= 6 * deviation / np.sqrt(COUNT)
    assert abs(y.std() / deviation - 1) <= 6 / np.sqrt(COUNT)
    assert (np.ptp(y, axis=1) == 0).all() == ("shared" in draw)
