"""Constants, identities, joins, reshapes, sequences: what `fuse` lets go, and what it must not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from syncbn_convert.passes import (
    FoldConstants,
    MergeConcats,
    MergeReshapes,
    RemoveIdentities,
    ReplaceSequences,
)
from syncbn_convert.rewriting import RewritePass
from tests.harness import Array, Feeds, apply_and_check, run

X = {"x": np.random.default_rng(0).normal(size=(2, 6, 2, 2)).astype(np.float32)}
EPSILON = float(np.finfo(np.float32).eps)
"""ONNX Runtime chooses other kernels for a Conv whose bias is constant."""
IMAGE = "float[N, 6, 2, 2] x"


def model(
    body: str, inputs: str = IMAGE, output: str = "float y", more: str = ""
) -> onnx.ModelProto:
    """Parse a model; the sizes of its outputs are left open."""
    parsed = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({output}) {more} {{ {body} }}'
    )
    for value in parsed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(parsed)
    for value, known in zip(parsed.graph.output, inferred.graph.output, strict=True):
        for number, _ in enumerate(known.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim.add().dim_param = f"{value.name}{number}"
    return parsed


def kinds(rewrite: RewritePass, given: onnx.ModelProto, feeds: Feeds | None = X) -> list[str]:
    """Return the operators that a pass leaves, which is checked on the way."""
    rewritten, _ = apply_and_check(rewrite, given, feeds=feeds, rtol=8 * EPSILON)
    return [node.op_type for node in rewritten.graph.node]


W = "<float[2, 6, 1, 1] w = {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6}>"

FOLDED = {
    "the bias that torch writes for a Conv without one": (
        "s = Shape <start = 0, end = 1> (w) c = Constant <value = float {0}> () "
        "z = CastLike(c, x) b = Expand(z, s) y = Conv(x, w, b)",
        W,
        ["Conv"],
    ),
    "Clip with Constant nodes": (
        "a = Constant <value_float = -0.5> () b = Constant <value = float {0.5}> () "
        "y = Clip(x, a, b)",
        "",
        ["Clip"],
    ),
    "pieces of a constant": (
        "k = Constant <value_ints = [6, 6]> () f = Constant <value_ints = [12]> () "
        "r = Reshape(w, f) p, q = Split <axis = 0> (r, k) "
        "t = Constant <value_ints = [1, 6, 1, 1]> () pr = Reshape(p, t) y = Add(x, pr)",
        W,
        ["Add"],
    ),
    "sizes that are known beside one that is not": (
        "s = Shape(x) i = Constant <value = int64 {1}> () c = Gather(s, i) "
        "f = Cast <to = 1> (c) y = Mul(x, f)",
        "",
        ["Mul"],
    ),
    "flattened with the batch taken from the input": (
        "s = Shape <start = 0, end = 1> (x) m = Constant <value_ints = [24]> () "
        "t = Concat <axis = 0> (s, m) y = Reshape(x, t)",
        "",
        ["Reshape"],
    ),
    "the same, where zeros are sizes": (
        "s = Shape <start = 0, end = 1> (x) m = Constant <value_ints = [24]> () "
        "t = Concat <axis = 0> (s, m) y = Reshape <allowzero = 1> (x, t)",
        "",
        ["Reshape"],
    ),
    "batch and rest": (
        "s = Shape(x) i = Constant <value_ints = [0]> () b = Gather(s, i) "
        "m = Constant <value_ints = [-1]> () t = Concat <axis = 0> (b, m) y = Reshape(x, t)",
        "",
        ["Reshape"],
    ),
    "batch and rest, where zeros are sizes": (
        "s = Shape <start = 0, end = 1> (x) m = Constant <value_ints = [3, -1, 2]> () "
        "t = Concat <axis = 0> (s, m) y = Reshape <allowzero = 1> (x, t)",
        "",
        ["Reshape"],
    ),
    "channels shuffled": (
        "s = Shape(x) i0 = Constant <value = int64 {0}> () i1 = Constant <value = int64 {1}> () "
        "b = Gather(s, i0) c = Gather(s, i1) two = Constant <value = int64 {2}> () "
        "h = Div(c, two) z = Constant <value_ints = [0]> () bu = Unsqueeze(b, z) "
        "hu = Unsqueeze(h, z) tu = Constant <value_ints = [2]> () "
        "rest = Constant <value_ints = [2, 2]> () t = Concat <axis = 0> (bu, tu, hu, rest) "
        "p = Reshape(x, t) q = Transpose <perm = [0, 2, 1, 3, 4]> (p) ps = Shape(q) "
        "pb = Gather(ps, i0) pbu = Unsqueeze(pb, z) m = Constant <value_ints = [-1, 2, 2]> () "
        "u = Concat <axis = 0> (pbu, m) y = Reshape(q, u)",
        "",
        ["Reshape", "Transpose", "Reshape"],
    ),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_what_only_constants_feed_is_folded(name: str, batch: int) -> None:
    body, more, left = FOLDED[name]
    feeds = {"x": np.resize(X["x"], (batch, 6, 2, 2))}
    given = model(body, more=more)
    if batch == 0 and name in ("batch and rest", "channels shuffled"):
        feeds = X  # on ONNX Runtime, the model itself does not take an empty batch
    assert kinds(FoldConstants(), given, feeds) == left


KEPT = {
    "what the graph returns": ("y = Constant <value_floats = [1.0, 2.0]> ()", "", IMAGE),
    "what a caller may feed": (
        "b = Exp(a) y = Add(x, b)",
        "<float[1] a = {1}>",
        f"{IMAGE}, float[1] a",
    ),
    "what would be large": (
        "s = Constant <value_ints = [1000, 6, 2, 2]> () c = Constant <value = float {2}> () "
        "e = Expand(c, s) m = ReduceSum <keepdims = 0> (e) r = Exp(x) y = Mul(r, m)",
        "",
        IMAGE,
    ),
    "two sizes that are not known": (
        "s = Shape(x) i = Constant <value_ints = [0, 2]> () g = Gather(s, i) "
        "m = Constant <value_ints = [12]> () t = Concat <axis = 0> (g, m) y = Reshape(x, t)",
        "",
        "float[N, 6, H, 2] x",
    ),
    "a size of another axis": (
        "s = Shape <start = 0, end = 1> (x) m = Constant <value_ints = [2, -1]> () "
        "e = Constant <value_ints = [6]> () t = Concat <axis = 0> (e, s, m) y = Reshape(x, t)",
        "",
        IMAGE,
    ),
    "random numbers": (
        "c = Constant <value_floats = [1.0]> () r = RandomUniformLike(c) z = Sub(r, r) "
        "y = Add(x, z)",
        "",
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_known_is_kept(name: str) -> None:
    body, more, inputs = KEPT[name]
    given = model(body, inputs, more=more)
    left = kinds(FoldConstants(), given)
    computed = [node.op_type for node in given.graph.node if node.op_type != "Constant"]
    assert [kind for kind in left if kind != "Constant"] == computed


def test_a_result_larger_than_its_operands_is_not_held() -> None:
    given = model(
        "s = Constant <value_ints = [1000, 6, 2, 2]> () c = Constant <value = float {2}> () "
        "e = Expand(c, s) m = ReduceMax <keepdims = 0> (e) y = Mul(x, m)"
    )
    rewritten, _ = apply_and_check(FoldConstants(), given, feeds=X)
    assert max(len(t.raw_data) for t in rewritten.graph.initializer) < 1 << 16


def test_a_fed_target_may_be_anything() -> None:
    given = model(
        "m = Constant <value_ints = [24]> () t = Concat <axis = 0> (n, m) y = Reshape(x, t)",
        f"{IMAGE}, int64[1] n",
    )
    rewritten, _ = apply_and_check(FoldConstants(), given)
    for number in (2, -1, 0):
        feeds: dict[str, Array] = {**X, "n": np.array([number], np.int64)}
        np.testing.assert_array_equal(run(rewritten, feeds)["y"], run(given, feeds)["y"])


PASSING_ON = {
    "Identity": ("a = Relu(x) b = Identity(a) y = Exp(b)", ["Relu", "Exp"]),
    "before an output": ("a = Relu(x) y = Identity(a)", ["Relu"]),
    "between input and output": ("y = Identity(x)", ["Identity"]),
    "Dropout in inference mode": ("a = Dropout(x) y = Exp(a)", ["Exp"]),
    "Dropout whose mask is read": (
        "a, m = Dropout(x) c = Cast <to = 1> (m) y = Add(a, c)",
        ["Dropout", "Cast", "Add"],
    ),
    "Cast to its own type": ("a = Cast <to = 1> (x) y = Exp(a)", ["Exp"]),
    "Cast to another type": ("a = Cast <to = 11> (x) y = Cast <to = 1> (a)", ["Cast", "Cast"]),
    "one alone": ("a = Concat <axis = 1> (x) b = Sum(a) c = Max(b) y = Exp(c)", ["Exp"]),
}


@pytest.mark.parametrize("name", PASSING_ON)
def test_what_passes_on_goes(name: str) -> None:
    body, left = PASSING_ON[name]
    assert kinds(RemoveIdentities(), model(body)) == left


def test_a_value_that_is_returned_twice_keeps_both_names() -> None:
    given = model("a = Relu(x) y = Identity(a)", output="float y, float a")
    rewritten, _ = apply_and_check(RemoveIdentities(), given, feeds=X)
    assert [value.name for value in rewritten.graph.output] == ["y", "a"]


def test_dropout_in_training_mode_stays() -> None:
    given = model(
        "r = Constant <value = float {0.5}> () t = Constant <value = bool {1}> () "
        "y = Dropout(x, r, t)"
    )
    assert kinds(RemoveIdentities(), given, None)[-1] == "Dropout"


JOINED = {
    "one axis": ("a = Concat <axis = 1> (x, x) y = Concat <axis = 1> (a, x)", 1),
    "three deep": (
        "a = Concat <axis = 1> (x, x) b = Concat <axis = 1> (x, a) y = Concat <axis = 1> (b, x)",
        1,
    ),
    "read twice by one": ("a = Concat <axis = 2> (x, x) y = Concat <axis = 2> (a, x, a)", 1),
    "two axes": ("a = Concat <axis = 2> (x, x) y = Concat <axis = 3> (a, a)", 2),
    "read by another": (
        "a = Concat <axis = 1> (x, x) b = Exp(a) y = Concat <axis = 1> (a, b)",
        2,
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_joins_are_merged(name: str) -> None:
    body, left = JOINED[name]
    assert kinds(MergeConcats(), model(body)).count("Concat") == left


R = "<int64[3] r = {0, 24, 1}, int64[2] f = {-1, 24}, int64[3] v = {0, 6, 4}>"
RESHAPED = {
    "two Reshapes": ("a = Reshape(x, r) y = Reshape(a, f)", ["Reshape"]),
    "a copied size of the same axis": ("a = Reshape(x, r) y = Reshape(a, v)", ["Reshape"]),
    "an axis of size 1 moved": (
        "a = Reshape(x, r) t = Transpose <perm = [0, 2, 1]> (a) y = Reshape(t, f)",
        ["Reshape"],
    ),
    "other axes moved": (
        "a = Reshape(x, v) t = Transpose <perm = [0, 2, 1]> (a) y = Reshape(t, f)",
        ["Reshape", "Transpose", "Reshape"],
    ),
    "a copied size that may be another": (
        "a = Reshape(x, r) b = Reshape(a, f) y = Reshape(b, v)",
        ["Reshape", "Reshape"],
    ),
    "read elsewhere": (
        "a = Reshape(x, r) e = Exp(a) b = Reshape(a, r) y = Add(e, b)",
        ["Reshape", "Exp", "Reshape", "Add"],
    ),
}


@pytest.mark.parametrize("name", RESHAPED)
def test_reshapes_are_merged(name: str) -> None:
    body, left = RESHAPED[name]
    feeds = {"x": np.resize(X["x"], (6, 6, 2, 2))}
    assert kinds(MergeReshapes(), model(body, more=R), feeds) == left


INDICES = (
    "<int64 i0 = {0}, int64 i1 = {1}, int64 last = {-1}, int64[2] s = {2, 4}, int64 four = {4}>"
)
SPLIT = {
    "given sizes": (
        "q = SplitToSequence <axis = 1> (x, s) a = SequenceAt(q, i0) b = SequenceAt(q, last) "
        "y = Concat <axis = 1> (b, a)",
        ["Split", "Concat"],
    ),
    "one size, and a smaller last piece": (
        "q = SplitToSequence <axis = 1> (x, four) a = SequenceAt(q, i1) b = SequenceAt(q, i0) "
        "y = Concat <axis = 1> (a, b)",
        ["Split", "Concat"],
    ),
    "taken twice": (
        "q = SplitToSequence <axis = -3> (x, s) a = SequenceAt(q, i0) b = SequenceAt(q, i0) "
        "y = Add(a, b)",
        ["Split", "Identity", "Add"],
    ),
    "the batch, whose size is not known": (
        "q = SplitToSequence <axis = 0> (x, i1) y = SequenceAt(q, i0)",
        ["SplitToSequence", "SequenceAt"],
    ),
    "its length asked for": (
        "q = SplitToSequence <axis = 1> (x, s) a = SequenceAt(q, i0) n = SequenceLength(q) "
        "f = Cast <to = 1> (n) y = Mul(a, f)",
        ["SplitToSequence", "SequenceAt", "SequenceLength", "Cast", "Mul"],
    ),
}


@pytest.mark.parametrize("name", SPLIT)
def test_sequences_of_pieces_become_a_split(name: str) -> None:
    body, left = SPLIT[name]
    assert kinds(ReplaceSequences(), model(body, more=INDICES)) == left
