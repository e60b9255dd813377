from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from syncbn_convert.files import model_file
from syncbn_convert.passes import AddLoss
from syncbn_convert.training.metrics import Metric, metric_of


def model_with(body: str, sizes: str = "n,4") -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (float[{sizes}] z) => (float[{sizes}] p) '
    return onnx.parser.parse_model(f"{text} {{ {body} }}")


@pytest.mark.parametrize(
    ("body", "loss", "sizes", "expected"),
    [
        ("p = Softmax(z)", "softmax-cross-entropy", "n,4", Metric("p", "l", "classes", classes=4)),
        (
            "p = Softmax<axis: int = 1>(z)",
            "softmax-cross-entropy",
            "n,4,5",
            Metric("p", "l", "classes", 1, classes=4),
        ),
        ("p = Identity(z)", "softmax-cross-entropy", "n,k", Metric("p", "l", "classes")),
        ("p = Sigmoid(z)", "binary-cross-entropy", "n,4", Metric("p", "l", "binary")),
        (
            "p = Identity(z)",
            "binary-cross-entropy",
            "n,4",
            Metric("p", "l", "binary", threshold=0.0),
        ),
        ("p = Identity(z)", "mse", "n,4", None),
    ],
)
def test_metric_of_a_model(body: str, loss: str, sizes: str, expected: Metric | None) -> None:
    model = model_file.as_model(model_with(body, sizes))
    assert metric_of(model, AddLoss(loss=loss, labels="l")) == expected


def test_classes_are_right_along_their_axis() -> None:
    output = np.zeros((2, 3, 2), np.float32)
    output[0, 1, 0] = output[0, 2, 1] = output[1, 0, 0] = output[1, 2, 1] = 1
    labels = np.array([[1, 2], [0, 1]])
    right = Metric("p", "l", "classes", 1).right(output, labels)
    np.testing.assert_array_equal(right, [[True, True], [True, False]])


def test_no_samples_are_no_predictions() -> None:
    right = Metric("p", "l", "classes").right(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    assert right.shape == (0,)


def test_binary_predictions_are_separated_by_the_threshold() -> None:
    output, labels = np.array([[-1.0, 2.0, -3.0, 4.0]]), np.array([[0.0, 1.0, 1.0, 0.0]])
    right = Metric("p", "l", "binary", threshold=0.0).right(output, labels)
    np.testing.assert_array_equal(right, [[True, True, False, False]])
