"""The gradient of digits_cnn on 1 to 4 replicas, against float64 autograd and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from tests.gradients import torch_oracle, whole_models
from tests.models import DIGITS

Array = npt.NDArray[Any]

PIECES = {"1": (9,), "2 uneven": (7, 2), "3, one empty": (4, 0, 5), "4 uneven": (1, 3, 0, 5)}


@pytest.fixture(scope="module")
def form() -> onnx.ModelProto:
    return whole_models.training_form(onnx.load(DIGITS))


def union() -> dict[str, Array]:
    images = np.load(DIGITS.with_name("digits_test.npz"))["image"][:9]
    direction = np.random.default_rng(0).normal(size=(9, 10)).astype(np.float32)
    return {"image": images, "direction": direction}


def split(feeds: dict[str, Array], sizes: tuple[int, ...]) -> list[dict[str, Array]]:
    stops = np.cumsum(sizes)[:-1]
    pieces = {name: np.split(array, stops) for name, array in feeds.items()}
    return [{name: pieces[name][rank] for name in feeds} for rank in range(len(sizes))]


@pytest.mark.parametrize("sizes", PIECES.values(), ids=PIECES)
def test_all_parameters(form: onnx.ModelProto, sizes: tuple[int, ...]) -> None:
    model, names = whole_models.differentiated(form)
    onnx.checker.check_model(model, full_check=True)
    assert len(names) == 17
    got = whole_models.summed_gradients(model, names, split(union(), sizes))
    whole_models.require_gradients(form, got, union())


def test_central_differences_in_float64(form: onnx.ModelProto) -> None:
    """Along a random direction of each parameter: (loss(p + h) - loss(p - h)) / 2h.

    With h = 1e-6 the difference loses h^2 to the third derivative and 1e-16/h to rounding, both far
    below what a float32 gradient carries.
    """
    model, names = whole_models.differentiated(form)
    got = whole_models.summed_gradients(model, names, [union()])
    values = {t.name: onnx.numpy_helper.to_array(t) for t in form.graph.initializer}
    random = np.random.default_rng(1)
    for name in names:
        direction = random.normal(size=values[name].shape)
        step = 1e-6 * direction
        high, low = (
            _loss(form, name, values[name].astype(np.float64) + sign * step) for sign in (1, -1)
        )
        wanted = (high - low) / 2e-6
        terms = np.abs(got[name] * direction)
        allowed = 256 * float(np.finfo(np.float32).eps) * float(terms.sum())
        assert abs(float((got[name] * direction).sum()) - wanted) <= allowed, name


def _loss(form: onnx.ModelProto, name: str, value: Array) -> float:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return float(torch_oracle.run(form, {**union(), name: value})[whole_models.LOSS])
    finally:
        torch.set_default_dtype(usual)
