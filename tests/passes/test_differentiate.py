"""What the pass promises besides its numbers, which tests/gradients hold to float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.passes import Differentiate
from syncbn_convert.rewriting import RewriteResult
from tests.gradients import whole_models
from tests.harness import apply_and_check, run
from tests.models import DIGITS

Array = npt.NDArray[Any]

LINE = """
<ir_version: 10, opset_import: ["" : 18]>
line (float[N, 3] x) => (float loss)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 1}, float[2] unused = {0, 0}>
{
    xw = MatMul (x, w)
    y = Add (xw, b)
    loss = ReduceSum <keepdims = 0> (y)
}
"""


def line(**replacements: str) -> onnx.ModelProto:
    text = LINE
    for old, new in replacements.items():
        text = text.replace(old, new)
    return onnx.parser.parse_model(text)


def differentiate(model: onnx.ModelProto, **options: Any) -> RewriteResult:
    result = Differentiate(**{"loss": "loss", **options})(ir.from_proto(model))
    assert isinstance(result, RewriteResult)
    return result


def test_gradients_are_outputs_and_parameters_are_inputs() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)

    def expected(feeds: Any) -> dict[str, Array]:
        total = feeds["x"].sum(axis=0, keepdims=True).T
        return {
            **run(line(), feeds),
            "w.grad": np.repeat(total, 2, axis=1),
            "b.grad": np.full(2, 2.0, np.float32),
        }

    rewritten, result = apply_and_check(
        Differentiate(loss="loss"),
        line(),
        feeds={"x": x},
        expected=expected,
        added_inputs=["w", "b"],
        added_outputs=["w.grad", "b.grad"],
    )
    assert {tensor.name for tensor in rewritten.graph.initializer} == {"w", "b", "unused"}
    assert [(record.node, record.action, record.reason) for record in result.records] == [
        ("unused", "skipped", "no gradient flows into it"),
        ("w", "differentiated", ""),
        ("b", "differentiated", ""),
    ]


def test_training_form_keeps_its_interface() -> None:
    form = whole_models.training_form(onnx.load(DIGITS))
    trained = [
        tensor.name
        for tensor in form.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and "/moving_" not in tensor.name
    ]
    rewritten, _ = apply_and_check(
        Differentiate(loss="loss"),
        form,
        added_inputs=trained,
        added_outputs=[f"{name}.grad" for name in trained],
    )
    again, _ = apply_and_check(
        Differentiate(loss="loss"),
        form,
        added_inputs=trained,
        added_outputs=[f"{name}.grad" for name in trained],
    )
    assert rewritten.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"trainable": ("^w$",)}, ["w"]),
        ({"frozen": ("w",)}, ["b"]),
        ({"trainable": ("w", "b"), "frozen": ("^b",)}, ["w"]),
    ],
)
def test_parameters_are_chosen_by_name(options: dict[str, Any], names: list[str]) -> None:
    result = differentiate(line(), **options)
    done = [record.node for record in result.records if record.action == "differentiated"]
    assert done == names


@pytest.mark.parametrize(
    ("replacements", "options", "message"),
    [
        ({}, {"loss": "y"}, "the graph has no output 'y' to differentiate; its outputs are loss"),
        ({}, {"frozen": (".",)}, "no initializer is trainable"),
        ({}, {"trainable": ("unused",)}, "the loss 'loss' depends on no trainable initializer"),
        (
            {'"" : 18': '"" : 17', "(y)": "(y)"},
            {},
            "opset 18 or higher, and the model has opset 17",
        ),
        ({"keepdims = 0": "keepdims = 1", "float loss": "float[1, 2] loss"}, {}, "shape"),
        ({"Add (xw, b)": "Det (xw)"}, {}, "no gradient rule for Det"),
    ],
)
def test_refusals_change_nothing(
    replacements: dict[str, str], options: dict[str, Any], message: str
) -> None:
    subject = ir.from_proto(line(**replacements))
    before = model_file.to_proto(subject).SerializeToString(deterministic=True)
    with pytest.raises(ConversionError, match=message):
        Differentiate(**{"loss": "loss", **options})(subject)
    assert model_file.to_proto(subject).SerializeToString(deterministic=True) == before


def test_name_of_a_gradient_may_not_be_taken() -> None:
    model = line()
    model.graph.initializer[2].name = "w.grad"
    with pytest.raises(ConversionError, match=r"a value named 'w\.grad' of its own"):
        differentiate(model)


def test_refused_pool_takes_its_indices_back() -> None:
    """A rule that asked a forward node for one more output, before another one refused."""
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    pools (float[N, 1, 4, 4] x) => (float loss) <float[1, 1, 4, 4] w>
    {
        a = Add (x, w)
        p = AveragePool <kernel_shape = [1, 1], strides = [2, 2], auto_pad = "SAME_UPPER"> (a)
        q = MaxPool <kernel_shape = [2, 2]> (p)
        loss = ReduceSum <keepdims = 0> (q)
    }
    """
    model = onnx.parser.parse_model(text.replace("w>", f"w = {{{', '.join(['1'] * 16)}}}>"))
    subject = ir.from_proto(model)
    before = model_file.to_proto(subject).SerializeToString(deterministic=True)
    with pytest.raises(ConversionError, match="spell it with pads"):
        Differentiate(loss="loss")(subject)
    assert model_file.to_proto(subject).SerializeToString(deterministic=True) == before


def test_two_parameters_with_one_gradient_get_an_output_each() -> None:
    model = line(**{"Add (xw, b)": "Sum (xw, b, unused)"})
    subject = model_file.as_model(model)
    Differentiate(loss="loss")(subject)
    got = run(model_file.to_proto(subject), {"x": np.ones((3, 3), np.float32)})
    assert got["b.grad"].tolist() == got["unused.grad"].tolist() == [3.0, 3.0]


def test_loss_through_moving_statistics_is_refused() -> None:
    form = whole_models.training_form(onnx.load(DIGITS))
    outputs = {value.name for value in form.graph.output}
    following = next(name for name in outputs if name.endswith("moving_mean.next"))
    form.graph.node.append(onnx.helper.make_node("ReduceSum", [following], ["odd"], keepdims=0))
    form.graph.output.append(onnx.helper.make_tensor_value_info("odd", onnx.TensorProto.FLOAT, []))
    subject = model_file.as_model(form)
    with pytest.raises(ConversionError, match="the loss depends on its statistics"):
        Differentiate(loss="odd")(subject)


def test_what_no_variable_became_is_trained_only_by_name() -> None:
    model = onnx.parser.parse_model(
        LINE.replace("float[2] b", "float[2] constant_3").replace("xw, b", "xw, constant_3")
    )
    reasons = {record.node: record.reason for record in differentiate(model).records}
    assert (
        reasons["constant_3"] == "no variable of the Keras model, and trained only if it is named"
    )
    named = differentiate(model, trainable=("constant",))
    assert [r.node for r in named.records if r.action == "differentiated"] == ["constant_3"]
