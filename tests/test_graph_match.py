from __future__ import annotations

from typing import NoReturn

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.keras.graph_match import Named, match_weights
from syncbn_convert.keras.reading import Source
from syncbn_convert.keras.taken_weights import take_weights

MODEL = """
<ir_version: 10, opset_import: ["" : 17]>
trained (float[batch,2,4] image, float[batch,2] other) => (float[batch,2,4] y)
<float[2,2,3] conv_kernel = {1,2,3,4,5,6,7,8,9,10,11,12}, float[2] gamma = {1,2},
 float[2] mean = {3,4}, float[2] var = {5,6}, float constant_3 = {0.5}> {
  beta = Constant <value = float[2] {7,8}> ()
  c = Conv <pads = [1,1]> (image, conv_kernel)
  b = BatchNormalization <epsilon = 0.001, momentum = 0.9> (c, gamma, beta, mean, var)
  yes = Constant <value = bool {1}> ()
  chosen = If (yes) <
    then_branch = body () => (float t) {
      two = Constant <value = float {2}> ()
      t = Mul (two, constant_3)
    },
    else_branch = nobody () => (float e) { e = Identity (constant_3) }
  >
  y = Add (b, chosen)
}
"""


def model(*changes: tuple[str, str]) -> ir.Model:
    text = MODEL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def match(*changes: tuple[str, str]) -> dict[str, list[float]]:
    """Match MODEL with a changed one; return what the latter holds, by names of MODEL."""
    pairs = match_weights(Named(model(), "a.keras"), Named(model(*changes), "b.onnx"))
    return {str(p.first.name): p.tensors[1].numpy().reshape(-1).tolist() for p in pairs}


def test_values_are_found_by_name_and_constants_by_place() -> None:
    changes = [("constant_3", "constant_1"), ("mean = {3,4}", "mean = {9,9}"), ("{0.5}", "{0.25}")]
    found = match(
        *changes,
        ("float[2] gamma = {1,2},", ""),
        ("float[2] mean", "float[2] gamma = {1,2}, float[2] mean"),
    )
    assert list(found) == ["conv_kernel", "gamma", "mean", "var", "constant_3"]
    assert found["mean"] == [9, 9]
    assert found["constant_3"] == [0.25]
    assert found["conv_kernel"] == np.arange(1, 13).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        [("c = Conv", "conv_2 = Conv"), ("(c, gamma", "(conv_2, gamma")],
        [("momentum = 0.9", "momentum = 0.5")],
        [("image", "keras_tensor_7")],
        [("y = Add (b, chosen)", "i = Identity (b) y = Add (i, chosen)")],
        [
            ("beta = Constant <value = float[2] {7,8}> ()", ""),
            ("float[2] mean", "float[2] beta = {7,8}, float[2] mean"),
        ],
    ],
    ids=["names of values", "momentum", "numbered input", "Identity", "beta as an initializer"],
)
def test_what_says_nothing_is_not_compared(changes: list[tuple[str, str]]) -> None:
    assert match(*changes) == match()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("image", "x"), ("other", "image"), ("x, conv", "image, conv")],
            "has the inputs 'image'",
        ),
        ([("float[batch,2,4] image", "float[batch,2,5] image")], r"float\[batch,2,5\]"),
        ([("gamma", "scale")], "weight 'gamma' of a.keras is not in b.onnx"),
        ([("float[2] gamma", "float[2] more = {1,2}, float[2] gamma")], "weight 'more' of b.onnx"),
        ([("float[2] gamma", "double[2] gamma")], r"'gamma' is float\[2\] in a.keras, but double"),
        (
            [("(c, gamma, beta, mean, var)", "(c, gamma, beta, var, mean)")],
            "reads 'mean' and 'var'",
        ),
        ([("epsilon = 0.001", "epsilon = 0.002")], "has epsilon 0.001[0-9]* and 0.002"),
        ([("pads = [1,1]", "pads = [2,0]")], "has pads .* and "),
        ([("pads = [1,1]", "pads = [1,1], dilations = [1]")], "has dilations none and "),
        ([("{7,8}", "{7,9}")], "reads other values as 'beta'"),
        ([("value = float {2}", "value = float {3}")], "reads other values as 'two'"),
        ([("t = Mul", "t = Add")], "is Mul and Add"),
        ([("y = Add (b, chosen)", "y = Sub (b, chosen)")], "is Add and Sub"),
        (
            [("y = Add (b, chosen)", "r = Relu (b) y = Add (r, chosen)")],
            "is BatchNormalization and Relu",
        ),
        (
            [("c = Conv <pads = [1,1]> (image,", "r = Relu (image) c = Conv <pads = [1,1]> (r,")],
            "'image' and 'r'",
        ),
        ([("y = Add (b, chosen)", "y = Add (b, b)")], "reads 'chosen' and 'b'|is If and Batch"),
    ],
)
def test_first_difference_is_named(changes: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        match(*changes)


def _none() -> NoReturn:
    raise AssertionError


@pytest.mark.parametrize("value", [0.5, 0.25])
def test_one_constant_does_not_take_two_values(value: float) -> None:
    apart = (
        ("float constant_3", f"float constant_4 = {{{value}}}, float constant_3"),
        ("Identity (constant_3)", "Identity (constant_4)"),
    )
    trained = Source(name="a.keras", model=model(*apart), framework=_none)
    if value == 0.5:
        take_weights(model(), trained)
    else:
        with pytest.raises(ConversionError, match="'constant_3' is one constant in the model"):
            take_weights(model(), trained)
