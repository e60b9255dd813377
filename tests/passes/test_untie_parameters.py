from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from syncbn_convert.passes import UntieParameters
from tests.harness import apply_and_check

NAMED = """<ir_version: 10, opset_import: ["" : 18]>
g (float[n,3] x) => (float[n,3] y)
<float[3] a = {%s}, float[3] moved = {1, 2, 3}>
{ b = Identity(a) c = Identity(b) p = Add(x, b) q = Mul(p, c) r = Mul(q, a) y = Add(r, moved) }"""


def feeds() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}


def test_equal_elements_are_parameters_of_their_own() -> None:
    model = onnx.parser.parse_model(NAMED % "2, 2, 2")
    found, result = apply_and_check(UntieParameters(), model, feeds=feeds())
    assert {tensor.name for tensor in found.graph.initializer} == {"a", "b", "c", "moved"}
    assert [record.node for record in result.records] == ["b", "c"]
    assert result.notes == [
        "'b' and 'a', 'c' and 'b': tied in the file as equal values, and trained each on its own"
    ]


def test_unequal_elements_stay_tied_and_are_named() -> None:
    model = onnx.parser.parse_model(NAMED % "2, 2, 3")
    _, result = apply_and_check(UntieParameters(), model, feeds=feeds())
    assert not result.modified
    assert result.notes == ["'b' and 'a': tied in the file, and trained as one parameter"]


def test_a_vector_that_two_normalizations_read_is_named() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,3] x) => (float[n,3] y)
        <float[3] s = {1, 1, 1}, float[3] b = {0, 0, 0}>
        { h = LayerNormalization(x, s, b) y = LayerNormalization(h, s, b) }"""
    )
    _, result = apply_and_check(UntieParameters(), model, feeds=feeds())
    assert not result.modified
    assert [note.partition(" is one parameter of ")[0] for note in result.notes] == ["'s'", "'b'"]


def test_what_is_no_parameter_is_left_alone() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n,3] x) => (float[n,3] y, float[2] z)
        <float one = {1}, int64[2] axes = {0, 0}, float[2] out = {1, 1}>
        { s = Identity(one) a = Identity(axes) z = Identity(out) p = Mul(x, s)
          q = Unsqueeze(p, a) y = Squeeze(q, a) }"""
    )
    _, result = apply_and_check(UntieParameters(), model)
    assert not result.modified
    assert not result.notes
