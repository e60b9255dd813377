"""Judges a gradient rule: central differences, torch, float32 against float64.

Tolerances. With L = sum(dY * Y), central differences of step h err by eps64 / h * sum|dY * Y| of
rounding and h^2 / 6 * |L'''| of truncation; with h = 1e-5 that is 2.2e-11 and 1.7e-11. Samples keep
|L'''| and the errors of kernels below 50 times that: 1e-9 * (1 + sum|dY * Y|). torch in float64 has
no truncation error: 1e-11 times the same. What ONNX Runtime has in float32 alone, and is linear in
each input, takes a step of 1/2, which has none either. float32 against float64: K roundings of
2^-24 on terms as big as the gradient, or as dY times the values, of which up to n are summed:
2^-24 * K * sqrt(n), K = 64. float16 likewise with 2^-11, which finds wrong types, not small errors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from syncbn_convert.passes.gradients import GradientTape, rule_for
from tests.gradients.reference import evaluator
from tests.gradients.sample import Array, Sample, rounded

STEP = 1e-5
LINEAR_STEP = 0.5
DIFFERENCES = 1e-9
AUTOGRAD = 1e-11
FLOAT32 = 2.0**-24
FLOAT16 = 2.0**-11
ROUNDINGS = 64

Feeds = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model says what a sample holds.

    Attributes:
        opset: Of the model.
        dims: `static` sizes, a symbol for each `size`, or one of its own for `each` axis.
        fed: Whether integers and bools are graph inputs; else they are initializers.
    """

    opset: int
    dims: str = "static"
    fed: bool = False


@dataclasses.dataclass(frozen=True)
class Graph:
    """A forward node and what its rule wrote for it.

    Attributes:
        forward: The model of the node.
        backward: The model of what the rule wrote; it is fed forward values and output gradients.
        whole: Both in one model.
        returned: The inputs that the rule gives a gradient of, in the order of the outputs of
            `backward`.
    """

    forward: onnx.ModelProto
    backward: onnx.ModelProto
    whole: onnx.ModelProto
    returned: list[str]


class Bench:
    """One sample in one layout."""

    def __init__(self, sample: Sample, layout: Layout) -> None:
        self.sample = sample
        self.layout = layout
        self.feeds = {
            f"x{index}": array for index, array in enumerate(sample.inputs) if array is not None
        }
        self.wanted = [f"x{index}" for index in wanted(sample)]
        self.double = sample.reference or not sample.single
        self.graph = write(sample, layout, np.dtype(np.float64 if self.double else np.float32))
        self.values = self._forward(self.feeds)
        rng = np.random.default_rng(7)
        self.upstream = {}
        for name in (f"y{index}" for index in sample.flowing):
            value = self.values[name]
            slopes = rng.uniform(0.5, 1.5, size=value.shape)
            signs = rng.choice([-1.0, 1.0], size=value.shape)
            self.upstream[name] = rounded(slopes * signs).astype(value.dtype)
        self.size = 1.0 + sum(
            float(np.abs(self.values[name] * dy).sum()) for name, dy in self.upstream.items()
        )
        self.gradients = self._in(np.dtype(np.float32)) if sample.single else self._backward()

    def check_differences(self) -> None:
        """Compare with central differences of the forward node."""
        for name in self.wanted:
            expected = self._differences(name)
            allowed = self._tolerance(expected, DIFFERENCES)
            _compare(self.gradients[name], expected, allowed, f"{name}: central differences")

    def check_autograd(self) -> None:
        """Compare outputs and gradients with torch, where it has the like."""
        if self.sample.oracle is None:
            return
        tensors = {name: torch.tensor(self.feeds[name], requires_grad=True) for name in self.wanted}
        result = self.sample.oracle(*tensors.values())
        outputs = result if isinstance(result, tuple) else (result,)
        total = torch.zeros((), dtype=torch.float64)
        for (name, dy), output in zip(self.upstream.items(), outputs, strict=True):
            expected = output.detach().numpy()
            allowed = self._tolerance(expected, AUTOGRAD)
            _compare(self.values[name], expected, allowed, f"{name}: torch's output")
            total = total + (output * torch.tensor(dy)).sum()
        if total.requires_grad:
            torch.autograd.backward([total])
        for name, tensor in tensors.items():
            expected = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
            allowed = self._tolerance(expected, AUTOGRAD)
            _compare(self.gradients[name], expected, allowed, f"{name}: torch's gradient")

    def check_float32(self) -> None:
        """Run forward and backward in float32 in one session and compare with float64."""
        if self.sample.seeded or self.sample.single:
            return
        self.compare(self._in(np.dtype(np.float32)), FLOAT32)

    def check_float16(self) -> None:
        """Run forward and backward in float16 in one session and compare with float64."""
        if not self.sample.seeded:
            self.compare(self._in(np.dtype(np.float16)), FLOAT16)

    def compare(self, results: Feeds, rounding: float) -> None:
        """Compare gradients computed in a narrower type with those in float64."""
        for name, got in results.items():
            exact = self.gradients[name]
            _compare(got, exact, self._narrow_tolerance(exact, rounding), f"{name}: {got.dtype}")

    def _tolerance(self, expected: Array, share: float) -> float:
        if self.sample.single:
            return self._narrow_tolerance(expected, FLOAT32)
        return share * self.size

    def _in(self, dtype: np.dtype[Any]) -> Feeds:
        graph = write(self.sample, self.layout, dtype)
        arrays = self._fed(self.feeds) | {f"{name}.grad": dy for name, dy in self.upstream.items()}
        results = dict(
            zip(graph.returned, _run(graph.whole, _as_declared(graph.whole, arrays)), strict=True)
        )
        for name in self.wanted:
            results.setdefault(name, np.zeros(self.feeds[name].shape, dtype))
            assert results[name].dtype == dtype
        return results

    def _narrow_tolerance(self, exact: Array, rounding: float) -> float:
        arrays = [*(self.feeds[name] for name in self.wanted), *self.values.values()]
        terms = max(dy.size for dy in self.upstream.values())
        values = [1.0, *(_largest(array) for array in arrays if array.dtype.kind == "f")]
        slope = max(_largest(dy) for dy in self.upstream.values())
        size = _largest(exact) + slope * max(values)
        return float(ROUNDINGS * rounding * max(terms, 1) ** 0.5 * size)

    def _fed(self, feeds: Feeds) -> Feeds:
        """Return the inputs that are graph inputs."""
        return {
            name: array
            for name, array in feeds.items()
            if array.dtype == np.float64 or (self.layout.fed and not self.sample.constants)
        }

    def _forward(self, feeds: Feeds) -> Feeds:
        """Return inputs, and every forward value that the backward model reads."""
        model = self.graph.forward
        names = [output.name for output in model.graph.output]
        if self.sample.reference:
            results = evaluator(model)(None, self._fed(feeds))
        else:
            results = _run(model, _as_declared(model, self._fed(feeds)))
        return feeds | dict(zip(names, results, strict=True))

    def _backward(self) -> Feeds:
        feeds = self.values | {f"{name}.grad": dy for name, dy in self.upstream.items()}
        needed = {value.name for value in self.graph.backward.graph.input}
        results = _run(self.graph.backward, {n: feeds[n] for n in feeds if n in needed})
        gradients = dict(zip(self.graph.returned, results, strict=True))
        for name in self.wanted:
            gradients.setdefault(name, np.zeros(self.feeds[name].shape))
        return gradients

    def _differences(self, name: str) -> Array:
        model = self.graph.forward
        run = evaluator(model) if self.sample.reference else _session(model).run
        names = [output.name for output in model.graph.output]

        exact_upstream = {key: dy.astype(np.float64) for key, dy in self.upstream.items()}

        def loss(array: Array) -> float:
            results = run(None, _as_declared(model, self._fed(self.feeds | {name: array})))
            values = dict(zip(names, results, strict=True))
            return float(sum((values[key] * dy).sum() for key, dy in exact_upstream.items()))

        x, step = self.feeds[name], STEP if self.double else LINEAR_STEP
        slopes = np.zeros(x.shape)
        for index in np.ndindex(x.shape):
            above, below = x.copy(), x.copy()
            above[index] += step
            below[index] -= step
            slopes[index] = (loss(above) - loss(below)) / (above[index] - below[index])
        return slopes


def wanted(sample: Sample) -> list[int]:
    """Return the inputs whose gradient is wanted."""
    return [
        index
        for index, array in enumerate(sample.inputs)
        if array is not None and array.dtype == np.float64 and index not in sample.frozen
    ]


def write(sample: Sample, layout: Layout, dtype: np.dtype[Any]) -> Graph:
    """Write the node, call its rule, and put what it wrote into models."""
    forward = forward_model(sample, layout, dtype)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(forward, data_prop=True))
    node = model.graph[0]
    x, y = node.inputs[0], node.outputs[0]
    if x is not None and y.type is None:  # inference knows no GroupNormalization
        y.type, y.shape = x.type, x.shape
    float_inputs = [value for index in wanted(sample) if (value := node.inputs[index])]
    tape = GradientTape(model, {id(value) for value in float_inputs})
    upstream = {
        index: ir.Value(
            name=f"y{index}.grad", type=node.outputs[index].type, shape=node.outputs[index].shape
        )
        for index in sample.flowing
    }
    rule = rule_for(node)
    assert rule is not None
    tape.enter(node)
    given = rule(tape, node, [upstream.get(index) for index in range(sample.outputs)])
    found = {
        str(value.name): gradient
        for value, gradient in zip(node.inputs, given, strict=False)
        if value is not None and gradient is not None and value in float_inputs
    }
    outputs = [tape.op("Identity", gradient) for gradient in found.values()]
    for output in outputs:
        output.type = ir.TensorType(ir.DataType.from_numpy(dtype))
    return _models(model, tape, upstream, outputs, list(found))


def _models(
    model: ir.Model,
    tape: GradientTape,
    upstream: dict[int, ir.Value],
    outputs: list[ir.Value],
    returned: list[str],
) -> Graph:
    node = model.graph[0]
    written = {id(output) for other in tape.nodes for output in other.outputs}
    read = {
        str(value.name): value
        for other in tape.nodes
        for value in other.inputs
        if value is not None and id(value) not in written
    }
    names = {str(value.name) for value in node.outputs}
    model.graph.outputs.extend(
        value for name, value in read.items() if name in names and not value.is_graph_output()
    )
    forward = ir.to_proto(model)
    model.graph.inputs.extend(upstream.values())
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    model.graph.extend(tape.nodes)
    whole = ir.to_proto(model)
    backward = onnx.ModelProto()
    backward.CopyFrom(whole)
    del backward.graph.node[:], backward.graph.input[:], backward.graph.initializer[:]
    backward.graph.node.extend(whole.graph.node[1:])
    backward.graph.input.extend(ir.serde.serialize_value(value) for value in read.values())
    return Graph(forward, backward, whole, returned)


def forward_model(sample: Sample, layout: Layout, dtype: np.dtype[Any]) -> onnx.ModelProto:
    """Return a model of the node alone."""
    inputs, initializers, names = [], [], []
    for index, array in enumerate(sample.inputs):
        names.append("" if array is None else f"x{index}")
        if array is None:
            continue
        floating = array.dtype == np.float64
        given = array.astype(dtype) if floating else array
        if not floating and (sample.constants or not layout.fed):
            initializers.append(onnx.numpy_helper.from_array(given, f"x{index}"))
            continue
        kind = onnx.helper.np_dtype_to_tensor_dtype(given.dtype)
        dims = _dims(
            array.shape, layout.dims if floating and index not in sample.static else "static", index
        )
        inputs.append(onnx.helper.make_tensor_value_info(f"x{index}", kind, dims))
    outputs = [f"y{index}" for index in range(sample.outputs)]
    node = onnx.helper.make_node(sample.op_type, names, outputs, **sample.attributes)
    returned = [onnx.ValueInfoProto(name=f"y{index}") for index in sample.flowing]
    graph = onnx.helper.make_graph([node], "sample", inputs, returned, initializers)
    opset = min(max(layout.opset, sample.min_opset), sample.max_opset)
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _dims(shape: tuple[int, ...], kind: str, index: int) -> list[int | str]:
    if kind == "static":
        return list(shape)
    if kind == "size":
        return [f"size{size}" for size in shape]
    return [f"x{index}_{axis}" for axis in range(len(shape))]


def _as_declared(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Return what a model's inputs take, in their element types."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return {
        name: feeds[name].astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        for name, kind in kinds.items()
    }


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(model: onnx.ModelProto, feeds: Feeds) -> list[Array]:
    if not model.graph.output:
        return []
    results: list[Array] = _session(model).run(None, feeds)
    return results


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0.0))


def _compare(got: Array, expected: Array, allowed: float, what: str) -> None:
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}"
    error = float(np.max(np.abs(got.astype(np.float64) - expected), initial=0.0))
    assert error <= allowed, f"{what}: {error:.3g} > {allowed:.3g}"
