"""Our initializers, regularizers and constraints against Keras' own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from syncbn_convert.options.keras_objects import constraint_of, initializer_of, regularizer_of
from syncbn_convert.options.keras_objects.configs import describe
from syncbn_convert.options.keras_objects.initializers import INITIALIZERS, Initializer
from tests.parity.keras_objects import compute

Array = npt.NDArray[Any]

PACKAGES = ("keras", "tf_keras")
FLOAT32 = 4 * float(np.finfo(np.float32).eps)
SAMPLES = 20_000


def config(name: str, **values: Any) -> dict[str, Any]:
    return {"class_name": name, "config": values}


EXACT = ["zeros", "ones", config("Constant", value=-0.75), "Zeros", "Ones"]
RANDOM: list[Any] = [
    *(name for name in INITIALIZERS if name not in ("Zeros", "Ones", "Constant")),
    "random_normal",
    config("RandomNormal", mean=1.0, stddev=0.02, seed=7),
    config("RandomUniform", minval=-1.0, maxval=3.0, seed=1),
    config("TruncatedNormal", mean=-2.0, stddev=0.5, seed=2),
    config("VarianceScaling", scale=3.0, mode="fan_avg", distribution="untruncated_normal"),
    config("VarianceScaling", scale=0.5, mode="fan_out", distribution="uniform", seed=3),
]
REGULARIZERS = [
    "L1", "L2", "L1L2", "l1", "l2",
    config("L1", l1=0.3), config("L2", l2=0.2), config("L1L2", l1=0.1, l2=0.5),
]  # fmt: skip
CONSTRAINTS = [
    "NonNeg", "UnitNorm", "MaxNorm", "MinMaxNorm", "non_neg", "max_norm", "unit_norm",
    config("MaxNorm", max_value=0.5, axis=0),
    config("MaxNorm", max_value=100.0),
    config("MinMaxNorm", min_value=5.0, max_value=8.0, rate=0.25, axis=0),
    config("MinMaxNorm", min_value=0.1, max_value=0.3, rate=1.0),
]  # fmt: skip
VALUES = [
    [0.5, -1.5, 2.0, -0.25, 0.0],
    [0.0, 0.0, 0.0],
    [1e-4, -1e-4],
]


def requests(kind: str, given: list[Any], **on: list[Any]) -> list[dict[str, Any]]:
    ((name, targets),) = on.items()
    return [
        {"package": package, "kind": kind, "given": identifier, name: target}
        for package, identifier, target in itertools.product(PACKAGES, given, targets)
    ]


def test_deterministic_initializers_are_equal(tmp_path: Path) -> None:
    asked = requests("initializers", EXACT, channels=[1, 6])
    for request, theirs in zip(asked, compute(asked, tmp_path), strict=True):
        ours = initializer_of(request["given"])(request["channels"])
        np.testing.assert_array_equal(ours.astype(np.float32), theirs)


def test_random_initializers_are_equal_in_distribution(tmp_path: Path) -> None:
    """Two samples' empirical distributions, by Kolmogorov and Smirnov, at a level of 1e-4."""
    asked = requests("initializers", RANDOM, channels=[SAMPLES])
    bound = math.sqrt(-math.log(1e-4 / 2) / 2) * math.sqrt(2 / SAMPLES)
    for request, theirs in zip(asked, compute(asked, tmp_path), strict=True):
        ours = np.sort(initializer_of(request["given"])(SAMPLES, (5,)))
        theirs = np.sort(theirs.astype(np.float64))
        both = np.concatenate([ours, theirs])
        distance = (
            np.abs(
                np.searchsorted(ours, both, side="right")
                - np.searchsorted(theirs, both, side="right")
            ).max()
            / SAMPLES
        )
        assert distance < bound, (request, distance)


def test_the_test_of_distributions_can_fail() -> None:
    ours = np.sort(initializer_of("he_normal")(SAMPLES, (5,)))
    other = np.sort(initializer_of("he_uniform")(SAMPLES, (6,)))
    both = np.concatenate([ours, other])
    distance = np.abs(np.searchsorted(ours, both) - np.searchsorted(other, both)).max() / SAMPLES
    assert distance > math.sqrt(-math.log(1e-4 / 2) / 2) * math.sqrt(2 / SAMPLES)


@pytest.mark.parametrize("given", RANDOM, ids=str)
def test_seeds_decide_every_bit(given: Any) -> None:
    one = initializer_of(given)
    np.testing.assert_array_equal(one(9, (1, 2)), initializer_of(given)(9, (1, 2)))
    own_seed = one.seed is not None  # type: ignore[attr-defined]
    assert np.array_equal(one(9, (1, 2)), one(9, (1, 3))) == own_seed


def test_regularizers_are_equal(tmp_path: Path) -> None:
    asked = requests("regularizers", REGULARIZERS, values=VALUES)
    l1_l2 = {"package": "tf_keras", "kind": "regularizers", "given": "l1_l2"}
    asked += [{**l1_l2, "values": values} for values in VALUES]
    for request, theirs in zip(asked, compute(asked, tmp_path), strict=True):
        ours = regularizer_of(request["given"])(np.array(request["values"], dtype=np.float32))
        assert ours == pytest.approx(float(theirs), rel=FLOAT32, abs=1e-12), request


def test_constraints_are_equal(tmp_path: Path) -> None:
    asked = requests("constraints", CONSTRAINTS, values=VALUES)
    for request, theirs in zip(asked, compute(asked, tmp_path), strict=True):
        ours = constraint_of(request["given"])(np.array(request["values"], dtype=np.float32))
        np.testing.assert_allclose(ours, theirs, rtol=FLOAT32, atol=1e-12, err_msg=str(request))


def test_what_keras_serializes_is_read() -> None:
    serialized = {
        "module": "keras.initializers",
        "class_name": "RandomNormal",
        "config": {"mean": 0.0, "stddev": 0.02, "seed": None},
        "registered_name": None,
    }
    made = initializer_of(serialized)
    assert isinstance(made, Initializer)
    assert describe(made) == "RandomNormal(stddev=0.02)"
