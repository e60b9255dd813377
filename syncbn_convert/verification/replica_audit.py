"""Does each SyncBatchNormalization normalize by the statistics of its replicas together?

Two replicas get different data, of different sizes where the model allows it; where nodes share
statistics within groups, as many replicas run as make whole groups. Each replica returns, for every
node, what its own input holds in float64; added up here, that is what the node's AllReduce must
have carried, and what its output and its moving statistics must follow from. As in `form_audit`
each node is judged on the input that it really gets, so depth does not matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.form import training_form
from syncbn_convert.form.stateful_layers import layers_of
from syncbn_convert.graph import graphs
from syncbn_convert.graph.dtypes import epsilon, smallest_normal
from syncbn_convert.verification.audit_nodes import DOUBLE, channels_in_the_middle, ints, largest
from syncbn_convert.verification.form_audit import NodeError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_FEW_REPLICAS = 8
_MOST_REPLICAS = 16
_EPSILON_FACTOR = 32.0
_MEAN_UNITS = 4.0
"""Units of precision that a local mean, rounded to the type of the statistics, may be off by."""


def replicas_to_audit(group_sizes: Iterable[int]) -> int:
    """Return how many replicas show every node's groups; 0 where they would be too many.

    Args:
        group_sizes: Of the nodes; 0 stands for all replicas.
    """
    sizes = [size for size in group_sizes if size]
    whole = math.lcm(*sizes)
    if whole > _MOST_REPLICAS:
        return 0
    return 2 * whole if sizes and 2 * whole <= _FEW_REPLICAS else max(whole, 2)


def replica_audit_model(observed: ir.Model, totals: Sequence[ir.Value]) -> None:
    """Let an observed form also return what the audit needs, in place.

    Per node `local/i`: [count, sum of x, sum of (x - local mean)^2], each sum [C], and
    `output/i`: [largest |Y - y|, largest |y|], with y normalized by the node's total; float64.
    """
    taken = graphs.used_names(observed)
    for number, (node, total) in enumerate(zip(training_form.nodes(observed), totals, strict=True)):
        tape = ir.tape.Tape()
        x = channels_in_the_middle(tape, node, node.inputs[0])
        results = {
            "local": _local_sums(tape, x),
            "output": _output_error(tape, node, x, total),
        }
        for name, value in results.items():
            value.name = graphs.unique_name(f"{name}/{number}", taken)
            value.type, value.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape([None])
            observed.graph.outputs.append(value)
        assert node.graph is not None
        node.graph.insert_after(node, list(tape.nodes))


def judge(form: ir.Model, replicas: Sequence[Mapping[str, Array]]) -> list[NodeError]:
    """Turn the outputs of all replicas into errors of every node, group by group.

    Args:
        form: The training form.
        replicas: All outputs of each replica.
    """
    errors: list[NodeError] = []
    for number, node in enumerate(training_form.nodes(form)):
        size = node.attributes.get_int("group_size", 0) or len(replicas)
        for start in range(0, len(replicas), size):
            errors += _judge_node(node, number, replicas[start : start + size])
    return errors + _judge_state(form, replicas[0]) + _judge_state(form, replicas[-1])


def _judge_node(
    node: ir.Node, number: int, replicas: Sequence[Mapping[str, Array]]
) -> list[NodeError]:
    name, total = graphs.label(node), f"total/{number}"
    stash = ir.DataType(node.attributes.get_int("stash_type", 1)).numpy()
    unit = epsilon(stash)
    union = _merge([outputs[f"local/{number}"] for outputs in replicas])
    if not union.count > 0:
        return []
    shared = _statistics(replicas[0][total])
    rounding = (_EPSILON_FACTOR + np.sqrt(union.count)) * unit
    deviation = np.sqrt(union.var)
    floor = smallest_normal(stash)
    size = np.abs(union.mean) + deviation + floor
    spread = np.sqrt(union.var + node.attributes["epsilon"].as_float())
    conditioning = 1.0 + float(np.max(np.abs(union.mean) / spread))
    input_dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    stored = epsilon((input_dtype or ir.DataType.FLOAT).numpy())
    mean_error = _MEAN_UNITS * unit * size
    var_size = union.var + 2.0 * deviation * mean_error / rounding + rounding * size**2 + floor
    errors = [
        NodeError(name, "count over all replicas", abs(shared.count - union.count), 0.0),
        NodeError(
            name,
            "mean over all replicas",
            _largest_ratio(np.abs(shared.mean - union.mean), size),
            rounding,
        ),
        NodeError(
            name,
            "variance over all replicas",
            _largest_ratio(np.abs(shared.var - union.var), var_size),
            rounding,
        ),
    ]
    for outputs in replicas:
        error, scale = outputs[f"output/{number}"]
        errors.append(
            NodeError(
                name, "Y", error / (scale or 1.0), _EPSILON_FACTOR * unit * conditioning + stored
            )
        )
        same = np.array_equal(outputs[total], replicas[0][total])
        errors.append(NodeError(name, "agreement of replicas", 0.0 if same else 1.0, 0.0))
    return errors


def _judge_state(form: ir.Model, outputs: Mapping[str, Array]) -> list[NodeError]:
    """Follow each layer's calls from its initializers to its last running outputs."""
    nodes = training_form.nodes(form)
    errors: list[NodeError] = []
    for layer in layers_of(form):
        for role, name in enumerate((layer.mean, layer.var)):
            tensor = form.graph.initializers[name].const_value
            assert tensor is not None
            moving = tensor.numpy().astype(np.float64)
            size = np.abs(moving)
            for call in layer.calls:
                statistics = _statistics(outputs[f"total/{call}"])
                batch = statistics.var if role else statistics.mean
                keep = nodes[call].attributes["momentum"].as_float()
                if layer.unbiased and role:
                    batch = batch * (statistics.count / max(statistics.count - 1.0, 1.0))
                if statistics.count > layer.unbiased:
                    moving = moving * keep + batch * (1.0 - keep)
                size = np.maximum(size, np.abs(batch))
            last = nodes[layer.calls[-1]].outputs[1 + role]
            got = outputs[str(last.name)].astype(np.float64)
            unit, floor = epsilon(tensor.dtype.numpy()), smallest_normal(tensor.dtype.numpy())
            tolerance = 2.0 * len(layer.calls) * unit
            errors.append(
                NodeError(
                    layer.name,
                    f"next value of '{name}'",
                    _largest_ratio(np.abs(got - moving), np.maximum(size, floor)),
                    tolerance,
                )
            )
    return errors


@dataclasses.dataclass(frozen=True)
class _Statistics:
    count: float
    mean: Float64
    var: Float64


def _statistics(total: Float64) -> _Statistics:
    channels = (len(total) - 1) // 2
    count = float(total[0])
    mean = total[1 : channels + 1] / (count or 1.0)
    second = total[channels + 1 :] / (count or 1.0)
    return _Statistics(count, mean, np.maximum(second - mean * mean, 0.0))


def _merge(locals_: Sequence[Float64]) -> _Statistics:
    """Merge counts, sums and centred sums of squares (Chan, Golub and LeVeque 1979)."""
    channels = (len(locals_[0]) - 1) // 2
    count = sum(float(local[0]) for local in locals_)
    mean = sum((local[1 : channels + 1] for local in locals_), np.zeros(channels)) / (count or 1.0)
    squares = np.zeros(channels)
    for local in locals_:
        own_mean = local[1 : channels + 1] / max(float(local[0]), 1.0)
        squares += local[channels + 1 :] + local[0] * (own_mean - mean) ** 2
    return _Statistics(count, mean, squares / (count or 1.0))


def _largest_ratio(errors: Float64, sizes: Float64) -> float:
    safe = np.where(sizes > 0, sizes, 1.0)
    return float(np.max(errors / safe, initial=0.0))


def _local_sums(tape: ir.tape.Tape, x: ir.Value) -> ir.Value:
    axes = ints(tape, 0, 2)
    total = tape.op("ReduceSum", [x, axes], {"keepdims": 0})
    number = tape.op("Cast", [tape.op("Size", [x])], {"to": DOUBLE})
    channels = tape.op("Cast", [tape.op("Size", [total])], {"to": DOUBLE})
    count = tape.op("Reshape", [tape.op("Div", [number, channels]), ints(tape, 1)])
    mean = _per_channel(tape, tape.op("Div", [total, count]))
    deviation = tape.op("Sub", [x, mean])
    squares = tape.op("Mul", [deviation, deviation])
    centred = tape.op("ReduceSum", [squares, axes], {"keepdims": 0})
    return tape.op("Concat", [count, total, centred], {"axis": 0})


def _output_error(tape: ir.tape.Tape, node: ir.Node, x: ir.Value, total: ir.Value) -> ir.Value:
    channels = tape.op("Shape", [node.inputs[1]])
    sizes = tape.op("Concat", [ints(tape, 1), channels, channels], {"axis": 0})
    count, first, second = tape.op_multi_out("Split", [total, sizes], {"axis": 0}, num_outputs=3)
    mean = tape.op("Div", [first, count])
    square = tape.op("Mul", [mean, mean])
    var = tape.op("Sub", [tape.op("Div", [second, count]), square])
    eps = ir.tensor([node.attributes["epsilon"].as_float()], dtype=ir.DataType.DOUBLE)
    floor = tape.op("Constant", [], {"value": ir.tensor([0.0], dtype=ir.DataType.DOUBLE)})
    var = tape.op("Max", [var, floor])
    deviation = tape.op("Sqrt", [tape.op("Add", [var, tape.op("Constant", [], {"value": eps})])])
    scale, bias = (
        tape.op("Cast", [value], {"to": DOUBLE}) for value in (node.inputs[1], node.inputs[2])
    )
    gain = tape.op("Div", [scale, deviation])
    centred = tape.op("Sub", [x, _per_channel(tape, mean)])
    scaled = tape.op("Mul", [centred, _per_channel(tape, gain)])
    exact = tape.op("Add", [scaled, _per_channel(tape, bias)])
    got = channels_in_the_middle(tape, node, node.outputs[0])
    parts = [largest(tape, tape.op("Sub", [got, exact])), largest(tape, exact)]
    return tape.op("Concat", parts, {"axis": 0})


def _per_channel(tape: ir.tape.Tape, value: ir.Value) -> ir.Value:
    return tape.op("Reshape", [value, ints(tape, 1, -1, 1)])
