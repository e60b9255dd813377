"""A Keras model to ONNX by tf2onnx, which sees neither normalization nor values of weights.

tf2onnx folds normalization into weights or takes it apart. Here each layer is traced as one
`PyFunc`, a node of TensorFlow that takes any shape and that nothing optimizes, and leaves tf2onnx
as the node `MARKER`, whose attribute is the layer's index. All variables become graph inputs, so
that no constant is merged with another of the same values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.python.framework import convert_to_constants

OPSET = 18
MARKER = "KerasBatchNormalization"
DOMAIN = "syncbn_convert.keras"


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        proto: The graph, with markers in place of normalization layers and variables as inputs.
        layers: The normalization layers, by the markers' attribute `layer`.
        variables: Name and value by graph input.
        masked: Indices of layers that are called with a mask.
    """

    proto: onnx.ModelProto
    layers: list[Any]
    variables: dict[str, tuple[str, npt.NDArray[Any]]]
    masked: set[int]


def trace(model: Any) -> Traced:
    """Trace the inference function of a built Keras 3 model.

    Raises:
        ValueError: if the shape of an input is not known, or tf2onnx does not know an operator.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    masked: set[int] = set()
    if not getattr(model, "inputs", None):
        raise ValueError("the shapes of its inputs are not known")
    signature = [tf.TensorSpec(value.shape, value.dtype, name=value.name) for value in model.inputs]
    if isinstance(model, keras.Sequential):
        structure, output_names = model.inputs[0], [model.layers[-1].name]
    else:
        structure, output_names = model.input, model.output_names

    def infer(*inputs: Any) -> Any:
        with _inlined_functions():
            return model(tf.nest.pack_sequence_as(structure, inputs), training=False)

    with _marked(layers, masked):
        concrete = tf.function(infer, input_signature=signature).get_concrete_function()
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )
    graph = frozen.graph.as_graph_def(add_shapes=True)
    handles = {id(variable.handle): variable for variable in concrete.variables}
    captured = {
        placeholder.op.name: handles[id(handle)]
        for handle, placeholder in concrete.graph.captures
        if id(handle) in handles
    }
    given = _constants_to_placeholders(graph, captured)
    inputs = [value.name for value in frozen.inputs]
    outputs = [value.name for value in frozen.outputs]
    proto, _ = tf2onnx.convert.from_graph_def(
        graph,
        name=model.name,
        input_names=[*inputs, *(f"{name}:0" for name in given)],
        output_names=outputs,
        opset=OPSET,
        custom_op_handlers={"PyFunc": (_write_marker, []), "Erfc": (_write_erfc, [])},
        extra_opset=[onnx.helper.make_opsetid(DOMAIN, 1)],
        tensors_to_rename=dict(
            zip(
                [*inputs, *outputs],
                [*(value.name for value in model.inputs), *output_names],
                strict=True,
            )
        ),
    )
    proto.graph.name = model.name
    paths = {id(own.value): own.path for own in model.variables}
    variables = {
        f"{name}:0": (
            paths.get(id(variable), variable.name.partition(":")[0]),
            np.asarray(variable),
        )
        for name, variable in given.items()
    }
    return Traced(proto, layers, variables, masked)


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
    """Trace through functions that Keras compiles for XLA, which freezing would leave as calls."""
    eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(eagerly)


@contextlib.contextmanager
def _marked(layers: list[Any], masked: set[int]) -> Iterator[None]:
    """Let the layers be traced as markers."""
    try:
        for index, layer in enumerate(layers):
            object.__setattr__(layer, "call", _marker(index, layer.axis, masked))
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)


def _marker(index: int, axis: int, masked: set[int]) -> Any:
    """Return what stands for a layer's `call`; it computes in float32, as the layer does."""

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        del training
        if mask is not None:
            masked.add(index)
        precise = tf.cast(inputs, tf.float64 if inputs.dtype == tf.float64 else tf.float32)
        rank = inputs.shape.rank
        token = json.dumps([index, axis % rank, rank])
        [output] = tf.raw_ops.PyFunc(input=[precise], token=token, Tout=[precise.dtype])
        return tf.cast(tf.ensure_shape(output, inputs.shape), inputs.dtype)

    return call


def _constants_to_placeholders(graph: Any, captured: dict[str, Any]) -> dict[str, Any]:
    """Turn the constants of frozen variables into inputs; return their variables by node name."""
    given = {}
    for node in graph.node:
        if node.op == "Const" and node.name in captured:
            dtype, shape = node.attr["dtype"].type, node.attr["value"].tensor.tensor_shape
            placeholder = tf.compat.v1.NodeDef(name=node.name, op="Placeholder")
            placeholder.attr["dtype"].type = dtype
            placeholder.attr["shape"].shape.CopyFrom(shape)
            placeholder.attr["_output_shapes"].list.shape.add().CopyFrom(shape)
            node.CopyFrom(placeholder)
            given[node.name] = captured[node.name]
    return given


def _write_marker(context: Any, node: Any, name: str, _arguments: Any) -> None:
    """Write a PyFunc as `MARKER`, between Transposes where channels are not on axis 1."""
    source, output = node.input[0], node.output[0]
    index, axis, rank = json.loads(node.get_attr_value("token"))
    dtype, shape = context.get_dtype(source), context.get_shape(source) or [-1] * rank
    context.remove_node(node.name)
    others = [at for at in range(1, rank) if at != axis]
    order = [0, axis, *others]
    if axis != 1:
        source = context.make_node("Transpose", [source], attr={"perm": order}).output[0]
    marker = context.make_node(
        MARKER,
        [source],
        attr={"layer": index},
        domain=DOMAIN,
        outputs=[output] if axis == 1 else None,
        name=name if axis == 1 else None,
        shapes=[[shape[at] for at in order]],
        dtypes=[dtype],
    )
    if axis != 1:
        back = sorted(range(rank), key=order.__getitem__)
        context.make_node(
            "Transpose",
            marker.output,
            attr={"perm": back},
            outputs=[output],
            name=name,
            shapes=[shape],
            dtypes=[dtype],
        )


def _write_erfc(context: Any, node: Any, name: str, _arguments: Any) -> None:
    """Write the complementary error function, which ONNX does not have, as 1 - Erf(x)."""
    source, output = node.input[0], node.output[0]
    dtype, shape = context.get_dtype(source), context.get_shape(source)
    context.remove_node(node.name)
    error = context.make_node("Erf", [source], shapes=[shape], dtypes=[dtype])
    one = context.make_const(
        f"{name}/one", np.ones((), onnx.helper.tensor_dtype_to_np_dtype(dtype))
    )
    context.make_node(
        "Sub",
        [one.output[0], error.output[0]],
        outputs=[output],
        name=name,
        shapes=[shape],
        dtypes=[dtype],
    )
