"""A graph of TensorFlow to ONNX by tf2onnx, which sees neither normalization nor weights.

tf2onnx folds normalization into weights or takes it apart; it gets markers in its place (see
`markers`). All variables become graph inputs, so that no constant is merged with another of the
same values. With opset 17 tf2onnx moves Transposes out from round pooling; with 18 it does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.python.framework import convert_to_constants

from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.keras import keras_weights, random_layers
from syncbn_convert.keras.form_layers import FormLayers
from syncbn_convert.keras.functions import (
    InferenceFunction,
    Signature,
    function_of,
    inlined_functions,
    trace_model,
)
from syncbn_convert.keras.graph_forms import find_forms, mark_forms
from syncbn_convert.keras.keras_layers import KerasLayer, read_layer, variable_path
from syncbn_convert.keras.markers import DOMAIN, OUTER, marking, write_marker

OPSET = 17
_XLA = "_XlaMustCompile"


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        proto: The graph, with markers in place of normalization layers and variables as inputs.
        layers: The normalization layers, by the markers' attribute `layer`.
        variables: Name and value by graph input.
        weights: What else is known of them, by graph input.
        draws: What layers draw in training, by the markers' attribute `layer`.
        remarks: What of the training of the model is left out.
    """

    proto: onnx.ModelProto
    layers: Mapping[int, KerasLayer]
    variables: dict[str, tuple[str, npt.NDArray[Any]]]
    weights: dict[str, WeightFacts]
    draws: Sequence[dict[str, Any]] = ()
    remarks: Sequence[str] = ()


def trace(model: Any, library: Any, signature: Signature) -> Traced:
    """Trace the inference function of a built model of Keras 3 or tf_keras.

    Raises:
        ValueError: if a layer normalizes over several axes, or tf2onnx does not know an operator.
    """
    with marking(library) as markers, inlined_functions():
        function = trace_model(model, signature, training=OUTER)
    layers = {
        index: read_layer(
            layer, library, masked=index in markers.masked, inferring=index in markers.inferring
        )
        for index, layer in enumerate(markers.layers)
    }
    traced = trace_function(function, FormLayers(layers, model, library))
    remarks = [*keras_weights.remarks_of(model), *random_layers.remarks_of(model, library)]
    return dataclasses.replace(traced, draws=markers.draws, remarks=remarks)


def trace_function(function: InferenceFunction, layers: FormLayers) -> Traced:
    """Convert a function to ONNX.

    Args:
        function: The function.
        layers: What the markers in it stand for; the forms of normalization in it join them.
    """
    frozen, captured = freeze(function.concrete)
    graph = frozen.graph.as_graph_def(add_shapes=True)
    for node in graph.node:
        data = [source for source in node.input if not source.startswith("^")]
        del node.input[:]
        node.input.extend(data)
    forms = find_forms(graph, captured)
    mark_forms(graph, forms, lambda form: layers.index_of(form, captured))
    ends = [value.op.name for value in (*frozen.inputs, *frozen.outputs)]
    graph = tf.compat.v1.graph_util.extract_sub_graph(graph, list(dict.fromkeys(ends)))
    return _to_onnx(graph, frozen, captured, function, layers.layers)


def freeze(concrete: Any) -> tuple[Any, dict[str, Any]]:
    """Return a function without calls whose variables are constants, and those by node name."""
    frozen = _with_constants(concrete)
    definition = frozen.graph.as_graph_def()
    if _take_off_xla(definition):
        frozen = _with_constants(function_of(definition, frozen.inputs, frozen.outputs))
    handles = {id(variable.handle): variable for variable in concrete.variables}
    captured = {
        placeholder.op.name: handles[id(handle)]
        for handle, placeholder in concrete.graph.captures
        if id(handle) in handles
    }
    return frozen, captured


def _with_constants(concrete: Any) -> Any:
    return convert_to_constants.convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )


def _take_off_xla(definition: Any) -> bool:
    """Let calls be inlined that are to be compiled for XLA; return whether there are any.

    Keras 3 saves grouped convolutions so, as TensorFlow's kernels for CPU do not run them all.
    """
    functions = (function.node_def for function in definition.library.function)
    nodes = [node for body in (definition.node, *functions) for node in body]
    marked = [node for node in nodes if _XLA in node.attr]
    for node in marked:
        del node.attr[_XLA]
    return bool(marked)


def _to_onnx(
    graph: Any,
    frozen: Any,
    captured: Mapping[str, Any],
    function: InferenceFunction,
    layers: Mapping[int, KerasLayer],
) -> Traced:
    """Convert a frozen graph with markers.

    Args:
        graph: The definition of the graph, which is changed.
        frozen: The function that it was of.
        captured: The variables by the names of their constants.
        function: The function before it was frozen.
        layers: What the markers stand for.
    """
    given = _constants_to_placeholders(graph, captured)
    inputs = [value.name for value in frozen.inputs]
    outputs = [value.name for value in frozen.outputs]
    proto, _ = tf2onnx.convert.from_graph_def(
        graph,
        name=function.name,
        input_names=[*inputs, *(f"{name}:0" for name in given)],
        output_names=outputs,
        opset=OPSET,
        custom_op_handlers={"PyFunc": (write_marker, []), "Erfc": (_write_erfc, [])},
        extra_opset=[onnx.helper.make_opsetid(DOMAIN, 1)],
        tensors_to_rename=dict(
            zip([*inputs, *outputs], [*function.inputs, *function.outputs], strict=True)
        ),
    )
    proto.graph.name = function.name
    variables = {
        f"{name}:0": (
            function.paths.get(id(variable), variable_path(variable)),
            np.asarray(variable.numpy()),
        )
        for name, variable in given.items()
    }
    weights = {
        f"{name}:0": function.weights.get(id(variable), WeightFacts())
        for name, variable in given.items()
    }
    return Traced(proto, layers, variables, weights)


def _constants_to_placeholders(graph: Any, captured: Mapping[str, Any]) -> dict[str, Any]:
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
