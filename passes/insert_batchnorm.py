"""BatchNormalization after the layers of a model whose normalization was fused away."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm
from syncbn_convert.graph import constants, graphs, module_names, weighted
from syncbn_convert.graph.value_types import infer_shapes_of
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult, matches

logger = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]

_FIRST_OPSET_OF_MIXED_TYPES = 15
_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a BatchNormalization goes: after `value`, which has `channels` at axis 1.

    What is known of the module that makes the value becomes metadata of the node.
    """

    name: str
    value: ir.Value
    channels: int
    module: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertBatchNorm(RewritePass):
    """Give Conv, ConvTranspose, Gemm and MatMul with constant weights a BatchNormalization.

    1. Its moving mean and variance are those of `statistics`; gamma = sqrt(variance + epsilon) and
       beta = mean, so that the function in inference stays as it is.
    2. After a MatMul that is followed by the addition of a bias, it comes after the addition.
    3. Without `statistics` it only reads the value, on the side, for these to be measured.
    4. Left alone is what is normalized already, and what does not have its channels at axis 1.

    ```
    before   t = Conv(x, w, c)
    after    t = Conv(x, w, c)  y = BatchNormalization(t, sqrt(v + epsilon), m, m, v)
    ```

    Attributes:
        include: Regular expressions; only nodes whose name matches one are selected (empty: all).
        exclude: Regular expressions; nodes whose name matches one are left as they are.
        statistics: Mean and variance of each value by the name of its new node, float64 [C].
        epsilon: Of the new nodes.
        momentum: Of the new nodes.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    statistics: Mapping[str, tuple[Float64, Float64]] | None = None
    epsilon: float = 1e-3
    momentum: float = 0.99

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node with weights gets a record."""
        journal = Journal(logger)
        if graphs.opset_version(model) < batchnorm.FIRST_OPSET_THAT_RUNS:
            raise ConversionError(
                f"the model has opset {graphs.opset_version(model)}, whose BatchNormalization no "
                "runtime runs; raise it to 7 or later first"
            )
        candidates = [node for node in model.graph if _has_weights(node)]
        infer_shapes_of(model, (node.outputs[0] for node in candidates))
        taken = graphs.used_names(model)
        places: list[_Place] = []
        for node in candidates:
            place = self._place(node, model)
            if isinstance(place, str):
                journal.add(node, "skipped", place)
                continue
            journal.add(node, "inserted", channels=place.channels)
            places.append(place)
        for place in places:
            self._insert(place, model, taken)
        return journal.result(model, modified=bool(places))

    def _place(self, node: ir.Node, model: ir.Model) -> _Place | str:
        """Return where the new node goes, or why nowhere."""
        names = module_names.names_of(node)
        if (self.include and not matches(self.include, *names)) or matches(self.exclude, *names):
            return "not selected"
        channels = _channels(node, model)
        if channels is None:
            return "its weights are computed at run time"
        value = _after_bias(node, channels, model)
        rank = len(value.shape) if value.shape is not None else None
        if not weighted.OPERATORS[node.op_type].is_convolution and rank != 2:
            return "its channels are not at axis 1"
        if any(batchnorm.is_batchnorm(usage.node) for usage in value.uses()):
            return "is normalized already"
        scopes = node.metadata_props.get(module_names.SCOPES)
        module = {module_names.SCOPES: scopes} if scopes else {}
        return _Place(f"{names[0]}{module_names.INSERTED}", value, channels, module)

    def _insert(self, place: _Place, model: ir.Model, taken: set[str]) -> None:
        value, graph = place.value, model.graph
        producer = value.producer()
        assert producer is not None
        parameters = self._parameters(place, model, taken)
        node = ir.node(
            batchnorm.OP_TYPE,
            [value, *parameters],
            {"epsilon": self.epsilon, "momentum": self.momentum},
            name=place.name,
            metadata_props=place.module,
        )
        y = node.outputs[0]
        y.type, y.shape = value.type, value.shape
        y.name = graphs.unique_name(f"{place.name}/y", taken)
        if self.statistics is not None:
            _go_between(value, y, node)
        graph.insert_after(producer, node)

    def _parameters(self, place: _Place, model: ir.Model, taken: set[str]) -> list[ir.Value]:
        mean, var = np.zeros(place.channels), np.ones(place.channels)
        if self.statistics is not None:
            mean, var = self.statistics[place.name]
        stored = float(np.float32(self.epsilon))
        dtype = _parameter_dtype(place.value, model)
        narrow_var = var.astype(dtype.numpy()).astype(np.float64)
        narrow_mean = mean.astype(dtype.numpy()).astype(np.float64)
        arrays = (np.sqrt(narrow_var + stored), narrow_mean, narrow_mean, narrow_var)
        values: list[ir.Value] = []
        for role, array in zip(_ROLES, arrays, strict=True):
            name = graphs.unique_name(f"{place.name}/{role}", taken)
            tensor = ir.tensor(array.astype(dtype.numpy()), name=name, dtype=dtype)
            parameter = ir.Value(
                name=name,
                type=ir.TensorType(dtype),
                shape=ir.Shape(array.shape),
                const_value=tensor,
            )
            model.graph.register_initializer(parameter)
            values.append(parameter)
        return values


def _has_weights(node: ir.Node) -> bool:
    return node.op_type in weighted.OPERATORS and node.domain in graphs.STANDARD_DOMAINS


def _parameter_dtype(value: ir.Value, model: ir.Model) -> ir.DataType:
    """Return the parameters' type: that of the value, but float32 for half ones where allowed."""
    dtype = value.dtype or ir.DataType.FLOAT
    narrow = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    mixed = graphs.opset_version(model) >= _FIRST_OPSET_OF_MIXED_TYPES
    return ir.DataType.FLOAT if narrow and mixed else dtype


def _go_between(value: ir.Value, y: ir.Value, node: ir.Node) -> None:
    """Let all readers of `value` read `y`; a graph output keeps its name."""
    if value.is_graph_output():
        value.name, y.name = y.name, value.name
    value.replace_all_uses_with(y, replace_graph_outputs=True)
    node.replace_input_with(0, value)


def _weight_shape(node: ir.Node, index: int, model: ir.Model) -> list[int] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or constants.is_overridable(value, model.ir_version):
        return None
    tensor = value.const_value if value.is_initializer() else None
    tensor = tensor or constants.constant_tensor(value, model)
    return [int(size) for size in tensor.shape.numpy()] if tensor is not None else None


def _channels(node: ir.Node, model: ir.Model) -> int | None:
    operator = weighted.OPERATORS[node.op_type]
    shape = _weight_shape(node, operator.weight, model)
    return operator.output_channels(node, shape) if shape and len(shape) > 1 else None


def _after_bias(node: ir.Node, channels: int, model: ir.Model) -> ir.Value:
    value = node.outputs[0]
    uses = list(value.uses())
    takes_bias = weighted.OPERATORS[node.op_type].bias is not None
    if takes_bias or len(uses) != 1 or value.is_graph_output():
        return value
    reader = uses[0].node
    if reader.op_type != "Add" or reader.graph is not node.graph:
        return value
    shape = _weight_shape(reader, 1 - uses[0].idx, model)
    if shape is None or shape[-1:] != [channels] or any(size != 1 for size in shape[:-1]):
        return value
    infer_shapes_of(model, [reader.outputs[0]])
    return reader.outputs[0]
