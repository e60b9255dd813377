"""The inference function of a model, as a graph of TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from syncbn_convert.form.weight_facts import WeightFacts
from syncbn_convert.graph import graphs
from syncbn_convert.keras.keras_weights import facts_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceFunction:
    """A traced function of a model.

    Attributes:
        name: Name of the model.
        concrete: The function, which takes and returns flat sequences.
        inputs: Names of its arguments.
        outputs: Names of its results.
        paths: Path of each variable of the model by the `id` of TensorFlow's variable.
        weights: What is known of a variable beside its value, by the same.
        keywords: Keywords of the arguments; empty where they are positional.
        owner: What has to live as long as the function.
    """

    name: str
    concrete: Any
    inputs: list[str]
    outputs: list[str]
    paths: Mapping[int, str]
    weights: Mapping[int, WeightFacts] = dataclasses.field(default_factory=dict)
    keywords: Sequence[str] = ()
    owner: Any = None

    def run(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name for inputs by name."""
        values = [tf.constant(arrays[name]) for name in self.inputs]
        if self.keywords:
            results = self.concrete(**dict(zip(self.keywords, values, strict=True)))
        else:
            results = self.concrete(*values)
        flat = (value.numpy() for value in tf.nest.flatten(results))
        return dict(zip(self.outputs, flat, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """How a model is called.

    Attributes:
        specs: Its inputs, flat, each with the name it is to have.
        structure: The inputs as positional and keyword arguments, filled with anything.
        outputs: Names of the outputs; None where the model has none of its own.
    """

    specs: list[Any]
    structure: tuple[Any, dict[str, Any]]
    outputs: list[str] | None


def trace_model(
    model: Any, signature: Signature, *, training: bool | int = False
) -> InferenceFunction:
    """Trace a built model of Keras 3 or tf_keras.

    Args:
        model: The model.
        signature: How it is called.
        training: The argument of that name: False, or 0, which is as false, but is not the False
            that a model passes to its parts.
    """
    names: list[str] = []

    def infer(*inputs: Any) -> Any:
        arguments, keywords = tf.nest.pack_sequence_as(signature.structure, inputs)
        results = model(*arguments, training=training, **keywords)
        names[:] = _distinct(
            signature.outputs or _output_names(results), [spec.name for spec in signature.specs]
        )
        return tf.nest.flatten(results)

    function = tf.function(infer, input_signature=signature.specs, autograph=False)
    concrete = function.get_concrete_function()
    return InferenceFunction(
        name=model.name,
        concrete=concrete,
        inputs=[spec.name for spec in signature.specs],
        outputs=names,
        paths={
            id(getattr(variable, "value", variable)): variable.path
            for variable in model.variables
            if hasattr(variable, "path")
        },
        weights=facts_of(model),
    )


def function_of(graph: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Return the definition of a graph as a function of the tensors named as these are."""
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    feeds, fetches = (
        [wrapped.graph.as_graph_element(value.name) for value in values]
        for values in (inputs, outputs)
    )
    return wrapped.prune(feeds, fetches)


def signature_of(model: Any, library: Any) -> Signature:
    """Return how a model is called.

    Raises:
        ValueError: if the shapes of its inputs are not known.
    """
    if getattr(model, "inputs", None):
        specs = [_spec(value.shape, value.dtype, value.name) for value in model.inputs]
        if isinstance(model, library.Sequential):
            return Signature(
                specs=specs, structure=((0,), {}), outputs=[str(model.layers[-1].name)]
            )
        keyed = isinstance(model.output, Mapping)
        return Signature(
            specs=specs,
            structure=((_leaves(model.input),), {}),
            outputs=None if keyed else [str(name) for name in model.output_names],
        )
    structure = _saved_structure(model) or _built_structure(model)
    if structure is None:
        raise ValueError("the shapes of its inputs are not known; call it on data once")
    return Signature(specs=tf.nest.flatten(structure), structure=structure, outputs=None)


def _leaves(structure: Any) -> Any:
    return tf.nest.map_structure(lambda _: 0, structure)


def _spec(shape: Any, dtype: Any, name: Any) -> Any:
    return tf.TensorSpec(shape, dtype, name=str(name).partition(":")[0])


def _saved_structure(model: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return the arguments that a subclassed model of tf_keras was called with."""
    saved = model.save_spec() if hasattr(model, "save_spec") else None
    if saved is None:
        return None
    arguments, keywords = saved
    tensors = [argument for argument in arguments if _of_tensors(argument)]
    named = [_named(argument, f"input_{at}") for at, argument in enumerate(tensors, start=1)]
    return tuple(named), {
        name: _named(value, name) for name, value in keywords.items() if _of_tensors(value)
    }


def _of_tensors(structure: Any) -> bool:
    return all(isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(structure))


def _named(structure: Any, default: str) -> Any:
    specs = [
        _spec(spec.shape, spec.dtype, spec.name or f"{default}_{at}")
        for at, spec in enumerate(tf.nest.flatten(structure))
    ]
    return tf.nest.pack_sequence_as(structure, specs)


def _built_structure(model: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return the arguments that a subclassed model was built for."""
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
        shape = getattr(model, "_build_input_shape", None)  # as tf_keras calls it
        if shape is None:
            return None
        shapes = {"input_shape": shape}
    if len(shapes) == 1:
        [(name, shape)] = shapes.items()
        return (_of_shapes(shape, name.removesuffix("_shape")),), {}
    named = {key.removesuffix("_shape"): shape for key, shape in shapes.items()}
    return (), {name: _of_shapes(shape, name) for name, shape in named.items()}


def _of_shapes(shape: Any, name: str) -> Any:
    """Return specs of float32, which layers of Keras cast; the batch may have any size."""
    if isinstance(shape, Mapping):
        return {key: _of_shapes(entry, str(key)) for key, entry in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return tf.TensorSpec([None, *shape[1:]], tf.float32, name=name)
    return [_of_shapes(entry, f"{name}_{at}") for at, entry in enumerate(shape)]


def _distinct(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return names of which none is that of another or of an input."""
    used = set(taken)
    return [graphs.unique_name(name, used) for name in names]


def _output_names(results: Any) -> list[str]:
    if isinstance(results, Mapping):
        return [str(name) for name in sorted(results)]
    count = len(tf.nest.flatten(results))
    return ["output"] if count == 1 else [f"output_{at}" for at in range(count)]


@contextlib.contextmanager
def inlined_functions() -> Iterator[None]:
    """Trace through functions inside a model, which would keep what they are traced as."""
    eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(eagerly)
