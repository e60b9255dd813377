"""Golden models in text form, and models made to be misunderstood."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper as onh
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from syncbn_convert.passes import RecognizeBatchNorm
from syncbn_convert.rewriting import RewriteResult
from tests.harness import apply_and_check, run

EPS = float(np.finfo(np.float32).eps)
TOLERANCE = 64 * EPS
"""Relative: some 20 roundings of half an EPS in each of two spellings, and sums of 60 elements
whose errors are divided by a deviation near 1."""

NCHW = "float[n, 3, 4, 5] x) => (float[n, 3, 4, 5] y"
NHWC = "float[n, 4, 5, 3] x) => (float[n, 4, 5, 3] y"
FLAT = "float[n, 3] x) => (float[n, 3] y"
GAMMA, BETA = (1.5, -0.5, 0.75), (0.25, -0.125, 1.0)
MEAN, VARIANCE = (0.5, -0.25, 2.0), (1.25, 0.5, 3.0)


def vector(name: str, values: tuple[float, ...], shape: str = "3") -> str:
    """Spell an initializer."""
    return f"float[{shape}] {name} = {{{', '.join(map(str, values))}}}"


def parameters(shape: str = "3", epsilon: float = 0.001) -> str:
    """Spell gamma, beta, mean, variance and epsilon."""
    vectors = zip("gbmv", (GAMMA, BETA, MEAN, VARIANCE), strict=True)
    spelled = ", ".join(vector(name, values, shape) for name, values in vectors)
    return f"{spelled}, float eps = {{{epsilon}}}"


def parse(interface: str, initializers: str, body: str, opset: int = 17) -> onnx.ModelProto:
    """Parse a model."""
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
        f"model ({interface})\n<{initializers}>\n{{\n{body}\n}}"
    )


def feeds(model: onnx.ModelProto) -> dict[str, Any]:
    """Random input, 4 samples of mean 1 and deviation 2."""
    value = model.graph.input[0]
    sizes = [size.dim_value or 4 for size in value.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return {value.name: np.random.default_rng(0).normal(1, 2, sizes).astype(dtype)}


def recognize(
    model: onnx.ModelProto, *, rtol: float = TOLERANCE, **options: Any
) -> tuple[onnx.ModelProto, RewriteResult]:
    """Run the pass, and what it returns on ONNX's reference implementation.

    ONNX Runtime's training-mode kernel writes over its moving statistics, and with them over equal
    initializers, such as a gamma of ones.
    """
    rewritten, result = apply_and_check(RecognizeBatchNorm(**options), model)
    given = feeds(model)
    wanted = run(model, given)
    names = list(wanted)
    for name, found in zip(names, ReferenceEvaluator(rewritten).run(names, given), strict=True):
        error = np.abs(np.asarray(found, np.float64) - wanted[name]).max()
        assert error <= rtol * np.abs(wanted[name]).max(), name
    return rewritten, result


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def only_norm(model: onnx.ModelProto) -> onnx.NodeProto:
    node: onnx.NodeProto
    (node,) = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    return node


def values(model: onnx.ModelProto, name: str) -> list[float]:
    """Values of an initializer or a Constant."""
    tensors = [t for t in model.graph.initializer if t.name == name]
    tensors += [n.attribute[0].t for n in model.graph.node if name in n.output and n.attribute]
    result: list[float] = onh.to_array(tensors[0]).tolist()
    return result


TRAINING = {
    "div": (
        NCHW,
        parameters("1, 3, 1, 1"),
        """
        mean = ReduceMean <axes = [0, 2, 3]> (x)
        d = Sub (x, mean)
        d2 = Mul (d, d)
        var = ReduceMean <axes = [0, 2, 3]> (d2)
        ve = Add (var, eps)
        std = Sqrt (ve)
        n = Div (d, std)
        s = Mul (n, g)
        y = Add (s, b)
        """,
    ),
    "tf2onnx, channels last": (
        NHWC,
        parameters(),
        """
        mean = ReduceMean <axes = [0, 1, 2]> (x)
        d = Sub (x, mean)
        d2 = Mul (d, d)
        var = ReduceMean <axes = [0, 1, 2]> (d2)
        ve = Add (var, eps)
        std = Sqrt (ve)
        r = Reciprocal (std)
        k = Mul (r, g)
        xk = Mul (x, k)
        mk = Mul (mean, k)
        c = Sub (b, mk)
        y = Add (xk, c)
        """,
    ),
    "tf2onnx, statistics in the other layout": (
        NCHW.replace("=> (float[n, 3, 4, 5] y", "=> (float[n, 4, 5, 3] y"),
        parameters() + ", int64[3] spatial = {0, 2, 3}, int64[4] wide = {1, 1, 1, 3}",
        """
        mean = ReduceMean <axes = [0, 2, 3]> (x)
        d = Sub (x, mean)
        d2 = Mul (d, d)
        var = ReduceMean <axes = [0, 2, 3]> (d2)
        flat_mean = Squeeze (mean, spatial)
        flat_var = Reshape (var, wide)
        ve = Add (flat_var, eps)
        std = Sqrt (ve)
        r = Reciprocal (std)
        k = Mul (r, g)
        mk = Mul (flat_mean, k)
        c = Sub (b, mk)
        xt = Transpose <perm = [0, 2, 3, 1]> (x)
        xk = Mul (xt, k)
        y = Add (c, xk)
        """,
    ),
    "two moments, keepdims=0": (
        NCHW,
        parameters("3, 1, 1") + ", float two = {2}, float half = {0.5}, int64[2] hw = {1, 2}",
        """
        x2 = Pow (x, two)
        mean = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x)
        mean2 = ReduceMean <axes = [0, -2, -1], keepdims = 0> (x2)
        m2 = Mul (mean, mean)
        var = Sub (mean2, m2)
        clipped = Relu (var)
        ve = Add (eps, clipped)
        std = Pow (ve, half)
        std3 = Unsqueeze (std, hw)
        mean3 = Unsqueeze (mean, hw)
        minus = Neg (mean3)
        d = Add (minus, x)
        gd = Mul (g, d)
        n = Div (gd, std3)
        y = Add (b, n)
        """,
    ),
    "features": (
        FLAT,
        parameters() + ", float minus = {-0.5}",
        """
        mean = ReduceMean <axes = [0], keepdims = 0> (x)
        d = Sub (x, mean)
        d2 = Mul (d, d)
        var = ReduceMean <axes = [0], keepdims = 0> (d2)
        ve = Add (var, eps)
        r = Pow (ve, minus)
        n = Mul (d, r)
        s = Mul (n, g)
        y = Add (s, b)
        """,
    ),
    "root of the reciprocal": (
        FLAT,
        parameters(),
        """
        mean = ReduceMean <axes = [0]> (x)
        d = Sub (x, mean)
        d2 = Mul (d, d)
        var = ReduceMean <axes = [0]> (d2)
        ve = Add (var, eps)
        inverse = Reciprocal (ve)
        r = Sqrt (inverse)
        gr = Mul (g, r)
        n = Mul (gr, d)
        y = Sub (n, nb)
        """.replace("y = Sub (n, nb)", "y = Add (n, b)"),
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_forms(name: str) -> None:
    model = parse(*TRAINING[name])
    rewritten, result = recognize(model)
    node = only_norm(rewritten)
    assert attributes(node)["training_mode"] == 1
    assert attributes(node)["epsilon"] == float(np.float32(0.001))
    assert len(node.output) == 3
    found = [values(rewritten, parameter) for parameter in node.input[1:]]
    assert found == [list(GAMMA), list(BETA), [0, 0, 0], [1, 1, 1]]
    assert {n.op_type for n in rewritten.graph.node} <= {"BatchNormalization", "Transpose"}
    assert [record.action for record in result.records] == ["recognized"]
    assert "moving statistics of recognized layers (1) are not in the model" in result.notes[0]


INFERENCE = {
    "formula": (
        NCHW,
        parameters("3, 1, 1"),
        """
        d = Sub (x, m)
        ve = Add (v, eps)
        std = Sqrt (ve)
        n = Div (d, std)
        s = Mul (n, g)
        y = Add (s, b)
        """,
    ),
    "scale first, channels last": (
        NHWC,
        parameters(),
        """
        ve = Add (v, eps)
        std = Sqrt (ve)
        r = Reciprocal (std)
        k = Mul (r, g)
        mk = Mul (m, k)
        c = Sub (b, mk)
        xk = Mul (x, k)
        y = Add (xk, c)
        """,
    ),
    "reshaped parameters": (
        NCHW,
        parameters() + ", int64[3] shape = {-1, 1, 1}",
        """
        m3 = Reshape (m, shape)
        v3 = Reshape (v, shape)
        g3 = Reshape (g, shape)
        b3 = Reshape (b, shape)
        d = Sub (x, m3)
        gd = Mul (d, g3)
        ve = Add (v3, eps)
        std = Sqrt (ve)
        n = Div (gd, std)
        y = Add (n, b3)
        """,
    ),
}


@pytest.mark.parametrize("name", INFERENCE)
def test_inference_forms(name: str) -> None:
    model = parse(*INFERENCE[name])
    rewritten, result = recognize(model)
    node = only_norm(rewritten)
    assert "training_mode" not in attributes(node)
    found = [values(rewritten, parameter) for parameter in node.input[1:]]
    assert found == [list(GAMMA), list(BETA), list(MEAN), list(VARIANCE)]
    assert {n.op_type for n in rewritten.graph.node} <= {"BatchNormalization", "Transpose"}
    assert not any("statistics" in note for note in result.notes)


def test_what_is_missing_is_neutral() -> None:
    interface, initializers, body = TRAINING["div"]
    body = body.replace("n = Div", "y = Div").partition("s = Mul")[0]
    model = parse(interface, initializers, body)
    rewritten, _ = recognize(model)
    node = only_norm(rewritten)
    assert [values(rewritten, name) for name in node.input[1:3]] == [[1, 1, 1], [0, 0, 0]]
    assert [n.op_type for n in rewritten.graph.node[:2]] == ["Constant", "Constant"]


def test_gamma_of_zeros_is_found() -> None:
    interface, initializers, body = TRAINING["div"]
    initializers = initializers.replace("1.5, -0.5, 0.75", "0, 0, 0")
    model = parse(interface, initializers, body)
    rewritten, _ = recognize(model)
    assert values(rewritten, only_norm(rewritten).input[1]) == [0, 0, 0]


def test_layer_is_named_after_its_scope_and_has_keras_momentum() -> None:
    model = parse(*TRAINING["tf2onnx, channels last"])
    model.producer_name = "tf2onnx"
    for node in model.graph.node:
        part = "moments" if node.output[0] in ("mean", "d", "d2", "var") else "batchnorm"
        node.name = f"net/bn/{part}/{node.output[0]}"
    rewritten, result = recognize(model)
    node = only_norm(rewritten)
    assert node.name == "net/bn"
    assert list(node.input[3:]) == ["net/bn/moving_mean", "net/bn/moving_variance"]
    assert attributes(node)["momentum"] == float(np.float32(0.99))
    assert "momentum is 0.99, Keras' default" in result.notes[0]


def test_opset_and_ir_version_rise() -> None:
    interface, initializers, body = TRAINING["div"]
    model = parse(interface, initializers, body, opset=11)
    model.ir_version = 6
    rewritten, result = recognize(model)
    assert rewritten.opset_import[0].version == 15
    assert rewritten.ir_version == 10
    assert "opset raised from 11 to 15" in result.notes


def test_axes_that_are_inputs() -> None:
    interface, initializers, body = TRAINING["div"]
    body = body.replace(" <axes = [0, 2, 3]> (x)", " (x, axes)")
    body = body.replace(" <axes = [0, 2, 3]> (d2)", " (d2, axes)")
    model = parse(interface, initializers + ", int64[3] axes = {3, 0, 2}", body, opset=18)
    rewritten, _ = recognize(model)
    assert only_norm(rewritten)


def test_shared_statistics_become_two_layers() -> None:
    """Two heads that normalize the same input, their moments merged."""
    interface, initializers, body = TRAINING["div"]
    head = "s2 = Mul (n, g2)\nz = Add (s2, b2)"
    interface += ", float[n, 3, 4, 5] z"
    initializers += f", {vector('g2', (3, 4, 5), '3, 1, 1')}, {vector('b2', (6, 7, 8), '3, 1, 1')}"
    model = parse(interface, initializers, body + head)
    rewritten, _ = recognize(model)
    norms = [node for node in rewritten.graph.node if node.op_type == "BatchNormalization"]
    assert [values(rewritten, node.input[1]) for node in norms] == [list(GAMMA), [3, 4, 5]]
    assert len({name for node in norms for name in node.input[3:]}) == 4
    assert len(rewritten.graph.node) == 2


def test_a_layer_called_twice_has_one_state() -> None:
    interface, initializers, body = TRAINING["tf2onnx, channels last"]
    model = parse(interface, initializers, body)
    first = list(model.graph.node)
    for node in first:
        again = onnx.NodeProto()
        again.CopyFrom(node)
        made = {output for other in first for output in other.output}
        again.input[:] = [f"{name}_2" if name in made else name for name in node.input]
        again.input[:] = ["y_1" if name == "x" else name for name in again.input]
        again.output[:] = ["y" if name == "y" else f"{name}_2" for name in node.output]
        model.graph.node.append(again)
    first[-1].output[0] = "y_1"
    rewritten, _ = recognize(model, rtol=2 * TOLERANCE)
    norms = [node for node in rewritten.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == 2
    assert list(norms[0].input[1:]) == list(norms[1].input[1:])


def test_neutral_initializers_that_were_merged_are_not_shared() -> None:
    interface, initializers, body = TRAINING["div"]
    initializers = initializers.replace("1.5, -0.5, 0.75", "1, 1, 1")
    model = parse(interface, initializers, body.replace("y = Add", "y1 = Add") + "y = Mul (y1, g)")
    rewritten, _ = recognize(model)
    assert only_norm(rewritten).input[1].endswith("/gamma")
    assert rewritten.graph.node[-1].input[1] == "g"


HOSTILE = {
    "instance normalization": (NCHW, "[0, 2, 3]", "[2, 3]"),
    "layer normalization": (NCHW, "[0, 2, 3]", "[1, 2, 3]"),
    "layer normalization over the last axis": (NHWC, "[0, 2, 3]", "[-1]"),
    "all axes": (NCHW, "[0, 2, 3]", "[0, 1, 2, 3]"),
    "samples and channels": (NCHW, "[0, 2, 3]", "[0, 1]"),
    "negative epsilon": (NCHW, "0.001", "-0.001"),
    "no epsilon": (NCHW, "0.001", "0"),
    "another axis for the variance": (NCHW, "[0, 2, 3]> (d2)", "[2, 3]> (d2)"),
    "the absolute deviation": (NCHW, "d2 = Mul (d, d)", "d2 = Abs (d)"),
    "a wrong sign": (NCHW, "d = Sub (x, mean)", "d = Add (x, mean)"),
    "a factor for the variance": (NCHW, "ve = Add (var,", "t = Add (var, var)\nve = Add (t,"),
    "a root too much": (NCHW, "n = Div (d, std)", "q = Sqrt (std)\nn = Div (d, q)"),
    "something else minus the mean": (NCHW, "d = Sub (x,", "e = Exp (x)\nd = Sub (e,"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("affine", [False, True])
def test_what_is_no_batch_normalization(name: str, affine: bool) -> None:
    interface, old, new = HOSTILE[name]
    _, initializers, body = TRAINING["div"]
    assert old in initializers + body
    if interface == NHWC:
        initializers = initializers.replace("1, 3, 1, 1", "3")
    model = parse(interface, initializers.replace(old, new), body.replace(old, new))
    _, result = recognize(model, affine=affine)
    assert not result.modified
    assert not result.records


def test_layer_normalization_of_rank_2() -> None:
    interface, initializers, body = TRAINING["features"]
    body = body.replace("<axes = [0], keepdims = 0>", "<axes = [1]>")
    model = parse(interface, initializers, body)
    _, result = recognize(model, affine=True)
    assert not result.modified


@pytest.mark.parametrize("rows", ["2, 2, 30", "1, 6, 20", "0, 2, 30"])
def test_group_and_instance_normalization_by_reshape(rows: str) -> None:
    """The second is batch normalization of one sample, into which all samples were folded."""
    axes = "[0, 2]" if rows.startswith("1") else "[2]"
    body = f"""
        r = Reshape (x, rows)
        mean = ReduceMean <axes = {axes}> (r)
        d = Sub (r, mean)
        d2 = Mul (d, d)
        var = ReduceMean <axes = {axes}> (d2)
        ve = Add (var, eps)
        std = Sqrt (ve)
        n = Div (d, std)
        back = Reshape (n, shape)
        s = Mul (back, g)
        y = Add (s, b)
    """
    initializers = parameters("3, 1, 1") + (
        f", int64[3] rows = {{{rows}}}, int64[4] shape = {{2, 3, 4, 5}}"
    )
    model = parse(NCHW.replace("n,", "2,"), initializers, body)
    _, result = recognize(model, affine=True)
    assert not result.modified


@pytest.mark.parametrize("width", [5, 3])
def test_constants_along_the_width_are_not_channels(width: int) -> None:
    """They are no values per channel of the weights, even where there are as many."""
    interface, _, body = INFERENCE["formula"]
    interface = interface.replace("4, 5", f"4, {width}")
    vectors = ", ".join(vector(name, tuple(range(1, width + 1)), str(width)) for name in "gbmv")
    weights = f"float[3, 3, 1, 1] w = {{{', '.join(['0.5'] * 9)}}}"
    conv = body.replace("(x,", "(h,")
    for affine in (False, True):
        initializers = f"{vectors}, {weights}, float eps = {{0.01}}"
        model = parse(interface, initializers, "h = Conv (x, w)" + conv)
        _, result = recognize(model, affine=affine)
        assert not result.modified


@pytest.mark.parametrize("value", ["mean", "var", "d"])
@pytest.mark.parametrize("how", ["returned", "read"])
def test_a_value_inside_that_something_else_needs(value: str, how: str) -> None:
    interface, initializers, body = TRAINING["div"]
    shape = "1, 3, 1, 1" if value in ("mean", "var") else "n, 3, 4, 5"
    name = value if how == "returned" else "other"
    body += "" if how == "returned" else f"other = Exp ({value})"
    model = parse(f"{interface}, float[{shape}] {name}", initializers, body)
    _, result = recognize(model)
    assert not result.modified
    (record,) = result.records
    assert record.action == "skipped"
    assert record.reason.startswith(f"'{value}' inside the normalization is ")


@pytest.mark.parametrize(("value", "behind"), [("n", ["Mul", "Add"]), ("s", ["Add"])])
def test_what_is_normalized_but_not_scaled_may_be_needed(value: str, behind: list[str]) -> None:
    interface, initializers, body = TRAINING["div"]
    model = parse(f"{interface}, float[n, 3, 4, 5] {value}", initializers, body)
    rewritten, _ = recognize(model)
    operators = [node.op_type for node in rewritten.graph.node if node.op_type != "Constant"]
    assert only_norm(rewritten).output[0] == value
    assert operators == ["BatchNormalization", *behind]


@pytest.mark.parametrize("sizes", ["n, 3, h, w", "2, 3, 4, 5", "1, 3, 1, 7", "n, 3, 1, 1"])
def test_known_and_unknown_sizes(sizes: str) -> None:
    _, initializers, body = TRAINING["div"]
    model = parse(f"float[{sizes}] x) => (float[{sizes}] y", initializers, body)
    rewritten, _ = recognize(model)
    assert only_norm(rewritten)


def test_number_of_channels_that_nothing_tells() -> None:
    _, initializers, body = TRAINING["div"]
    body = body.replace("n = Div", "y = Div").partition("s = Mul")[0]
    model = parse("float[n, c, h, w] x) => (float[n, c, h, w] y", initializers, body)
    _, result = recognize(model)
    assert not result.modified


AFFINE = """
    h = Conv (x, w)
    r = Relu (h)
    s = Mul (r, g)
    y = Add (s, b)
"""
WEIGHTS = f"float[3, 3, 1, 1] w = {{{', '.join(str(i / 4 - 1) for i in range(9))}}}"


def test_affine_maps_are_taken_on_request_only() -> None:
    model = parse(NCHW, f"{parameters('3, 1, 1')}, {WEIGHTS}", AFFINE)
    _, result = recognize(model)
    assert not result.modified
    assert result.notes == [
        "scale * x + bias behind weights (1, the first 'Add(y)') may be normalization whose "
        "statistics were computed away; 'syncbn-convert convert --recognize-affine' takes it"
    ]
    rewritten, result = recognize(model, affine=True)
    node = only_norm(rewritten)
    found = [values(rewritten, name) for name in node.input[1:]]
    epsilon = attributes(node)["epsilon"]
    assert found[:3] == [list(GAMMA), list(BETA), [0, 0, 0]]
    assert found[3] == pytest.approx([1 - epsilon] * 3, rel=EPS)
    assert "mean and variance not known" in result.records[0].reason
    assert "training begins with mean 0 and variance 1" in result.notes[0]


@pytest.mark.parametrize(
    ("body", "mean", "scale", "bias"),
    [
        ("t = Sub (r, m)\ny = Mul (t, g)", MEAN, GAMMA, (0, 0, 0)),
        ("t = Mul (g, r)\ny = Sub (t, b)", (0, 0, 0), GAMMA, tuple(-b for b in BETA)),
        ("t = Add (r, m)\ny = Mul (g, t)", tuple(-m for m in MEAN), GAMMA, (0, 0, 0)),
        ("t = Div (r, v)\ny = Add (b, t)", (0, 0, 0), tuple(1 / v for v in VARIANCE), BETA),
        ("d = Sub (r, m)\nt = Mul (d, g)\ny = Add (t, b)", MEAN, GAMMA, BETA),
    ],
)
def test_spellings_of_affine_maps(body: str, mean: Any, scale: Any, bias: Any) -> None:
    initializers = f"{parameters('1, 3, 1, 1')}, {WEIGHTS}"
    model = parse(NCHW, initializers, f"h = Conv (x, w)\nr = Relu (h)\n{body}")
    rewritten, _ = recognize(model, affine=True)
    node = only_norm(rewritten)
    found = [values(rewritten, name) for name in (node.input[3], node.input[1], node.input[2])]
    for own, wanted in zip(found, (mean, scale, bias), strict=True):
        assert own == pytest.approx(list(wanted), rel=EPS)


@pytest.mark.parametrize(
    ("shape", "start"),
    [
        ("3, 1, 1", "r = Relu (x)"),
        ("3", "h = Conv (x, w)\nr = Relu (h)"),
        ("3, 1, 1", "h = Conv (x, w)\nq = Exp (h)\nr = Mul (h, q)"),
        ("3, 1, 1", "h = Conv (x, w)\nr = BatchNormalization (h, one, one, one, one)"),
    ],
    ids=["no weights", "width, not channels", "product of values", "behind a normalization"],
)
def test_affine_maps_that_may_be_something_else(shape: str, start: str) -> None:
    initializers = f"{parameters(shape)}, {WEIGHTS}, {vector('one', (1, 1, 1))}"
    body = AFFINE.partition("s = Mul")[2]
    model = parse(NCHW.replace("4, 5", "4, 3"), initializers, f"{start}\ns = Mul{body}")
    _, result = recognize(model, affine=True)
    assert not result.modified
    assert not result.notes


def test_body_is_left_alone_and_said() -> None:
    interface, initializers, body = TRAINING["div"]
    inner = parse(interface, initializers, body)
    then = onnx.helper.make_graph(
        list(inner.graph.node), "then", [], [inner.graph.output[0]], list(inner.graph.initializer)
    )
    for node in then.node:
        node.input[:] = ["h" if name == "x" else name for name in node.input]
    then.value_info.append(
        onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [None, 3, 4, 5])
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["h"], ["e"])],
        "other",
        [],
        [onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, [None, 3, 4, 5])],
    )
    model = parse(
        NCHW.replace("x)", "x, bool c)"), "float one = {1}", "h = Mul (x, one)\ny = Neg (h)"
    )
    del model.graph.node[1]
    model.graph.node.append(
        onnx.helper.make_node(
            "If", ["c"], ["y"], name="choose", then_branch=then, else_branch=other
        )
    )
    _, result = apply_and_check(RecognizeBatchNorm(), model)
    assert not result.modified
    (record,) = result.records
    assert (record.action, record.location) == ("skipped", "If 'choose' then_branch")
    assert "control-flow body" in record.reason


def test_functions_are_inlined_where_that_helps() -> None:
    interface, initializers, body = TRAINING["div"]
    model = parse(interface, initializers, body)
    function = onnx.helper.make_function(
        "local",
        "Norm",
        ["x", "g", "b", "eps"],
        ["y"],
        list(model.graph.node),
        [onnx.helper.make_opsetid("", 17)],
    )
    call = onnx.helper.make_node("Norm", ["x", "g", "b", "eps"], ["y"], domain="local", name="call")
    del model.graph.node[:]
    model.graph.node.append(call)
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    rewritten, result = recognize(model)
    assert only_norm(rewritten)
    assert not rewritten.functions
    assert "model-local functions with normalization were inlined: local::Norm" in result.notes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ("y",)}, "excluded"),
        ({"include": ("other",)}, "not included"),
        ({"freeze": ("y",)}, "cannot be frozen: its moving statistics are not in the model"),
    ],
)
def test_selection(options: dict[str, Any], reason: str) -> None:
    _, result = recognize(parse(*TRAINING["div"]), **options)
    assert not result.modified
    assert [record.reason for record in result.records] == [reason]


def test_frozen_inference_form_is_recognized() -> None:
    _, result = recognize(parse(*INFERENCE["formula"]), freeze=("y",))
    assert result.modified


def test_float16_is_recognized_with_float32_statistics() -> None:
    interface, initializers, body = TRAINING["div"]
    model = parse(interface, initializers, body)
    for tensor in model.graph.initializer:
        array = onh.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onh.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    half = float(np.finfo(np.float16).eps)
    rewritten, _ = apply_and_check(RecognizeBatchNorm(), model, feeds=feeds(model), rtol=8 * half)
    node = only_norm(rewritten)
    types = {t.name: t.data_type for t in rewritten.graph.initializer}
    assert [types[name] for name in node.input[1:]] == [10, 10, 1, 1]
    assert attributes(node)["epsilon"] == float(np.float16(0.001))


def test_a_parameter_that_may_be_fed_is_no_constant() -> None:
    interface, initializers, body = TRAINING["div"]
    model = parse(interface, initializers, body)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("g", onnx.TensorProto.FLOAT, [1, 3, 1, 1])
    )
    rewritten, _ = recognize(model)
    node = only_norm(rewritten)
    assert values(rewritten, node.input[1]) == [1, 1, 1]
    assert [n.op_type for n in rewritten.graph.node][-2:] == ["Mul", "Add"]
