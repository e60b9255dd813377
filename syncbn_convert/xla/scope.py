"""The values of a program while it is traced."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import training_form
from syncbn_convert.graph import graphs
from syncbn_convert.xla import sample_axes, sample_counts
from syncbn_convert.xla.operators import operator_of
from syncbn_convert.xla.operators.normalizing import normalized
from syncbn_convert.xla.sample_axes import Layout
from syncbn_convert.xla.synchronized import Norm, Operands, normalize
from syncbn_convert.xla.traced_run import Run
from syncbn_convert.xla.translations import Array, Call, in_element_types

Attributes = Mapping[str, Any]
_WHOLE = {training_form.OP_TYPE, training_form.ALL_REDUCE}


class Scope:
    """The values of one run; values of bodies and functions are those of their last call."""

    def __init__(self, model: ir.Model, run: Run, numbers: Mapping[int, int]) -> None:
        self.values: dict[int, Array] = {}
        self.layouts: dict[int, Layout | None] = {}
        self.sized: dict[int, sample_counts.Sized] = {}
        self._model = model
        self._run = run
        self._numbers = numbers

    def native(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a constant in an element type that the device has."""
        narrower = value.dtype == np.float64 and not self._run.has_double
        return value.astype(np.float32) if narrower else value

    def read(self, value: ir.Value) -> Array:
        """Return a value that was made.

        Raises:
            ConversionError: if it is an output that a translation does not make.
        """
        if id(value) in self.values:
            return self.values[id(value)]
        node = value.producer()
        if node is None and value.const_value is not None:  # an initializer of a body
            return self.native(constant_of(value))
        assert node is not None
        raise ConversionError(
            f"node '{graphs.label(node)}' ({node.op_type}): its output '{value.name}' has no "
            "translation to XLA; run the model on ONNX Runtime (--engine threads)"
        )

    def evaluate(self, node: ir.Node, opset: int, outer: Attributes) -> None:
        """Set the values of a node's outputs."""
        attributes = dict(_attributes(node, outer))
        function = function_of(self._model, node)
        if function is not None:
            self._call(function, node, attributes)
            return
        if training_form.is_sync_batchnorm(node):
            list(self.normalize([node], node.attributes.get_int("group_size", 0)))
            return
        operator = operator_of(node)
        assert operator is not None
        given = [None if value is None else self.read(value) for value in node.inputs]
        inputs = tuple(in_element_types(operator, given, self._run))
        call = Call(
            node,
            opset,
            attributes,
            inputs,
            tuple(self._layout(value) for value in node.inputs),
            tuple(self._sized(value) for value in node.inputs),
            self._numbers.get(id(node), 0),
            self._run,
            functools.partial(self._body, node, opset, outer),
        )
        found = self._translated(operator, call)
        outputs = [_array(value) for value in (found if isinstance(found, tuple) else (found,))]
        self._place(operator, call, outputs)
        for value, output in zip(node.outputs, outputs, strict=False):
            self.values[id(value)] = output

    def _translated(self, operator: Any, call: Call) -> Any:
        replaced = sample_counts.as_numbers(call)
        if replaced is not None:
            return replaced
        try:
            return operator.translate(call, *call.inputs)
        except ConversionError:
            raise
        except (TypeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
            shapes = ", ".join(
                "-" if value is None else f"{value.dtype}{list(value.shape)}"
                for value in call.inputs
            )
            raise call.refuse(
                f"cannot be translated for inputs {shapes} ({' '.join(str(error).split())[:200]})",
                "check the shapes of the data, or run the model on ONNX Runtime (--engine threads)",
            ) from error

    def _place(self, operator: Any, call: Call, outputs: Sequence[Array]) -> None:
        """Note where the samples lie in what a node made."""
        if self._run.weights is None:
            return
        node = call.node
        for value in node.outputs:
            self.layouts.pop(id(value), None)
            self.sized.pop(id(value), None)
        kept = sample_counts.of_output(operator, call)
        if kept is not None:
            self.sized[id(node.outputs[0])] = kept
            return
        if node.op_type in sample_counts.OF_SHAPES or not sample_counts.has_samples(call):
            return
        if operator.samples is None:
            raise sample_axes.mixes(call)
        found = operator.samples(call, outputs)
        for value, layout in zip(node.outputs, found, strict=False):
            self.layouts[id(value)] = layout

    def normalize(
        self, nodes: Sequence[ir.Node], group_size: int
    ) -> Iterator[tuple[ir.Node, Array]]:
        """Set the outputs of SyncBatchNormalization nodes; yield each with its total."""
        operands, norms = [], []
        for node in nodes:
            x, scale, bias, mean, var = (
                self.read(value) for value in node.inputs if value is not None
            )
            norms.append(_norm(node, np.ndim(x), self._layout(node.inputs[0])))
            operands.append(Operands(jnp.asarray(x), scale, bias, mean, var))
            if self._run.weights is not None:
                self._check_layout(node, norms[-1])
                self.layouts[id(node.outputs[0])] = norms[-1].layout
        if not self._run.training:
            for node, norm, given in zip(nodes, norms, operands, strict=True):
                made = (normalized(given.x, norm, given), given.mean, given.var)
                for value, array in zip(node.outputs, made, strict=False):
                    self.values[id(value)] = array
            return
        found = normalize(self._run, norms, operands, group_size)
        for node, result in zip(nodes, found, strict=True):
            made = (result.y, result.mean, result.var)
            for value, array in zip(node.outputs, made, strict=False):
                self.values[id(value)] = array
            yield node, result.total

    def _check_layout(self, node: ir.Node, norm: Norm) -> None:
        if norm.layout is None or norm.layout.axis == norm.axis:
            raise ConversionError(
                f"node '{graphs.label(node)}' normalizes what holds no samples apart, and this "
                "batch cannot be dealt evenly to the replicas, so that some samples are padding; "
                "give a batch size, and a number of samples, that the replicas divide"
            )

    def _layout(self, value: ir.Value | None) -> Layout | None:
        return None if value is None else self.layouts.get(id(value))

    def _sized(self, value: ir.Value | None) -> sample_counts.Sized:
        return None if value is None else self.sized.get(id(value))

    def _body(
        self, node: ir.Node, opset: int, outer: Attributes, name: str, inputs: Sequence[Array]
    ) -> list[Array]:
        graph = node.attributes[name].as_graph()
        for value, array in zip(graph.inputs, inputs, strict=False):
            self.values[id(value)] = array
        for inner in graph:
            self.evaluate(inner, opset, outer)
        return [self.read(value) for value in graph.outputs]

    def _call(self, function: ir.Function, node: ir.Node, attributes: Attributes) -> None:
        defaults = {
            attribute.name: attribute.value
            for attribute in function.attributes.values()
            if attribute.value is not None
        }
        for value, given in zip(function.inputs, node.inputs, strict=False):
            if given is not None:
                self.values[id(value)] = self.read(given)
                self.layouts[id(value)] = self._layout(given)
        opset = function.opset_imports.get("", graphs.opset_version(self._model))
        for inner in function:
            self.evaluate(inner, opset, {**defaults, **attributes})
        for value, made in zip(node.outputs, function.outputs, strict=False):
            if value.uses() or value.is_graph_output():
                self.values[id(value)] = self.read(made)
                self.layouts[id(value)] = self._layout(made)


def _array(value: Any) -> Array:
    """Return an array, also where NumPy made a number of it."""
    return np.asarray(value) if isinstance(value, np.generic | int | float | bool) else value


def _norm(node: ir.Node, rank: int, layout: Layout | None) -> Norm:
    return Norm(
        axis=node.attributes.get_int("axis", 1) % rank,
        epsilon=node.attributes.get_float("epsilon", 1e-5),
        momentum=node.attributes.get_float("momentum", 0.9),
        unbiased=bool(node.attributes.get_int("unbiased", 0)),
        layout=layout,
    )


def _attributes(node: ir.Node, outer: Attributes) -> Iterator[tuple[str, Any]]:
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            yield name, attribute.value
        elif attribute.ref_attr_name in outer:
            yield name, outer[str(attribute.ref_attr_name)]


def function_of(model: ir.Model, node: ir.Node) -> ir.Function | None:
    """Return the function that a node calls; those of the training form are translated whole."""
    if node.domain == training_form.DOMAIN and node.op_type in _WHOLE:
        return None
    return model.functions.get(node.op_identifier())


def constant_of(value: ir.Value) -> np.ndarray[Any, Any]:
    """Return the array of an initializer."""
    tensor = value.const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())
