"""The training algorithm of a model as a model of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import training_form, training_info
from syncbn_convert.graph import graphs


@dataclasses.dataclass(frozen=True)
class UpdateModel:
    """The update graph: what parameters and slots become after a step.

    Attributes:
        proto: The model. Inputs: parameters, slots, buckets, learning rate and step.
        parameters: Output by parameter.
        slots: Output by slot.
        slot_infos: Element type and shape of each slot; all are zero at first.
        buckets: Names of the buckets.
        learning_rate: Name of that input, float32.
        step: Name of that input, int64, 1 for the first update.
    """

    proto: onnx.ModelProto
    parameters: dict[str, str]
    slots: dict[str, str]
    slot_infos: dict[str, tuple[str, tuple[int, ...]]]
    buckets: list[str]
    learning_rate: str
    step: str

    def initial_slots(self) -> dict[str, npt.NDArray[Any]]:
        """Return zeros for each slot."""
        return {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.slot_infos.items()}


def update_model(model: ir.Model) -> UpdateModel:
    """Return the first entry's algorithm as a model.

    Args:
        model: What `UpdateParameters` has rewritten.

    Raises:
        ConversionError: if it has no such algorithm.
    """
    entries = training_info.get(model)
    if not entries or len(entries[0].algorithm.input) < _LEAST_INPUTS:
        raise ConversionError("the model has no training algorithm that updates its parameters")
    algorithm = entries[0].algorithm
    learning_rate, step, *packed = algorithm.input
    made = {info.name for info in algorithm.output}
    bindings = {pair.key: pair.value for pair in entries[0].update_binding if pair.value in made}
    slots = [_slot_info(slot) for slot in algorithm.sparse_initializer]
    slot_names = {info.name for info in slots}
    parameters = [_info(model, name) for name in bindings if name not in slot_names]
    used = set(bindings.values())
    graph = helper.make_graph(
        list(algorithm.node),
        "update",
        [*parameters, *slots, *packed, learning_rate, step],
        [info for info in algorithm.output if info.name in used],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", graphs.opset_version(model))],
        ir_version=max(model.ir_version or 0, training_form.MIN_IR_VERSION),
    )
    return UpdateModel(
        proto,
        {info.name: bindings[info.name] for info in parameters},
        {info.name: bindings[info.name] for info in slots},
        {info.name: _dtype_and_shape(info) for info in slots},
        [info.name for info in packed],
        learning_rate.name,
        step.name,
    )


_LEAST_INPUTS = 3


def _info(model: ir.Model, name: str) -> onnx.ValueInfoProto:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())


def _slot_info(slot: onnx.SparseTensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(slot.values.name, slot.values.data_type, slot.dims)


def _dtype_and_shape(info: onnx.ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    tensor = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return str(dtype), tuple(dim.dim_value for dim in tensor.shape.dim)
