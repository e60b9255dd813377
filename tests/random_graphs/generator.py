"""Random small graphs around BatchNormalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st

from tests.random_graphs import scopes
from tests.random_graphs.layers import batchnorm
from tests.random_graphs.sketch import Draw, Sketch, Value
from tests.random_graphs.steps import some

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A model and what it is fed.

    Attributes:
        model: Valid by ONNX's checker.
        feeds: For every input that has no default.
        fed: Other values for the inputs that have one.
    """

    model: onnx.ModelProto
    feeds: Mapping[str, Array]
    fed: Mapping[str, Array]


def sample(data: st.DataObject) -> Sample:
    """Draw a graph of 3 to 8 steps."""
    draw = Draw(data, np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))))
    sketch = Sketch(draw)
    scope = sketch.main
    scope.is_dynamic = draw.flag()
    spatial = [draw.integer(1, 5) for _ in range(draw.one_of(0, 1, 2, 2, 2, 3))]
    shape = (draw.integer(1, 3), draw.integer(1, 4), *spatial)
    sizes: list[Any] = list(shape)
    if scope.is_dynamic:
        sizes[0] = draw.one_of("N", "batch", None)
        sizes[2:] = [None if draw.flag(4) else size for size in spatial]
    value = Value(scope.name(), shape, sketch.dtype)
    sketch.input(value, draw.normal(*shape).astype(sketch.dtype), sizes)
    made = []
    for number in range(draw.integer(2, 7)):
        # every graph has a normalization
        value = (batchnorm if number == 1 else some)(scope, value)
        made.append(value)
    if value.name in sketch.inputs:
        value = scope.add("Identity", [value], value.shape)
    outputs = {value.name: value}
    if draw.flag(3):
        other = draw.one_of(*made)
        outputs[other.name] = other
    outputs |= {other.name: other for other in scope.statistics}
    infos = []
    for name, returned in outputs.items():
        if name not in sketch.inputs:
            static = not scope.is_dynamic and draw.flag()
            declared = returned.shape if static else [None] * len(returned.shape)
            infos.append(scopes.output_info(returned, declared))
    return Sample(sketch.model(infos), sketch.feeds, sketch.fed)
