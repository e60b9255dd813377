"""The samples of the bench through the pass, with what is differentiated as parameters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbn_convert.files import model_file
from syncbn_convert.passes import Differentiate
from syncbn_convert.passes.gradients import registered
from syncbn_convert.passes.gradients.nondifferentiable import no_gradient
from tests.gradients.cases import CASES, Case
from tests.gradients.judge import FLOAT32, Bench, Layout, forward_model
from tests.gradients.sample import Draw
from tests.gradients.test_rules import FEW
from tests.harness import run

_FLAT = {op_type for _, op_type, rule in registered() if rule is no_gradient}
_UNKNOWN_TO_INFERENCE = {"GroupNormalization"}
_CASES = [case for case in CASES if case.op_type not in _FLAT | _UNKNOWN_TO_INFERENCE]


@pytest.mark.parametrize("case", _CASES, ids=str)
@settings(FEW, max_examples=2)
@given(data=st.data())
def test_gradients_of_parameters(case: Case, data: st.DataObject) -> None:
    draw = Draw(data)
    bench = Bench(case.sampler(draw), Layout(opset=draw.one_of(18, 21, 24)))
    subject = model_file.as_model(training_model(bench))
    result = Differentiate(loss="loss", trainable=tuple(f"^{name}$" for name in bench.wanted))(
        subject
    )
    assert result.modified
    differentiated = model_file.to_proto(subject)
    onnx.checker.check_model(differentiated, full_check=True)
    feeds = {f"{name}.weight": dy.astype(np.float32) for name, dy in bench.upstream.items()}
    results = run(differentiated, feeds)
    if not bench.sample.seeded:
        bench.compare(
            {
                name.removesuffix(".grad"): array
                for name, array in results.items()
                if name.endswith(".grad")
            },
            FLOAT32,
        )


def training_model(bench: Bench) -> onnx.ModelProto:
    """Return the sample's node with parameters as initializers and a weighted sum as the loss."""
    model = forward_model(bench.sample, bench.layout, np.dtype(np.float32))
    graph = model.graph
    for value in list(graph.input):
        array = bench.feeds[value.name].astype(np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del graph.input[:], graph.output[:]
    terms = []
    for name, dy in bench.upstream.items():
        weight, cast, product, term = (f"{name}.{part}" for part in ("weight", "cast", "by", "sum"))
        info = onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, dy.shape)
        graph.input.append(info)
        graph.node.extend(
            [
                onnx.helper.make_node("Cast", [name], [cast], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node("Mul", [cast, weight], [product]),
                onnx.helper.make_node("ReduceSum", [product], [term], keepdims=0),
            ]
        )
        terms.append(term)
    graph.node.append(onnx.helper.make_node("Sum", terms, ["loss"]))
    graph.output.append(onnx.helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, []))
    return model
