"""Normalization layers traced as markers, which nothing folds, takes apart or merges.

While a model is traced, the layers' `call` writes one `PyFunc` in place of what it computes: a node
of TensorFlow that takes any shape and that nothing optimizes. tf2onnx is told to write it as the
node `MARKER`, whose attribute is the layer's index.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from syncbn_convert.keras import random_layers

MARKER = "KerasBatchNormalization"
RANDOM_MARKER = "KerasRandomness"
DOMAIN = "syncbn_convert.keras"


class Markers:
    """The layers that were traced as markers.

    Attributes:
        layers: The layers, by index.
        masked: Indices of those that are called with a mask.
        inferring: Indices of those that the model calls with training=False, whatever it does.
        draws: What layers draw in training, by index (see `random_layers`).
    """

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.masked: set[int] = set()
        self.inferring: set[int] = set()
        self.draws: list[dict[str, Any]] = []

    def mark(self, layer: Any, inputs: Any, mask: Any, training: Any) -> Any:
        """Return what stands for the output of `layer`."""
        index = next((at for at, known in enumerate(self.layers) if known is layer), None)
        if index is None:
            index = len(self.layers)
            self.layers.append(layer)
        if mask is not None:
            self.masked.add(index)
        if training is False:
            self.inferring.add(index)
        return tf.cast(marked(inputs, index, channel_axis(layer)), layer.compute_dtype)

    def mark_random(self, layer: Any, inputs: Any) -> Any:
        """Return what stands for the output of a layer that draws random numbers in training."""
        rank = inputs.shape.rank
        draw = None if rank is None else random_layers.draw_of(layer, rank)
        if draw is None:
            return inputs
        self.draws.append({"layer": str(layer.name), **draw})
        token = json.dumps([len(self.draws) - 1, rank])
        [output] = tf.raw_ops.PyFunc(input=[inputs], token=token, Tout=[inputs.dtype])
        return tf.ensure_shape(output, inputs.shape)


def marked(inputs: Any, index: int, axis: int) -> Any:
    """Return the output of a marker, which computes in float32 or wider as the layers do."""
    precise = tf.cast(inputs, tf.float64 if inputs.dtype == tf.float64 else tf.float32)
    rank = inputs.shape.rank
    token = json.dumps([index, axis % rank, rank])
    [output] = tf.raw_ops.PyFunc(input=[precise], token=token, Tout=[precise.dtype])
    return tf.ensure_shape(output, inputs.shape)


def channel_axis(layer: Any) -> int:
    """Return the only channel axis of a layer.

    Raises:
        ValueError: if it has several, as tf_keras allows.
    """
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if len(axes) != 1:
        raise ValueError(f"layer '{layer.name}' normalizes over the axes {axes}, not over one")
    virtual = getattr(layer, "virtual_batch_size", None) is not None
    return int(axes[0]) - virtual  # tf_keras counts the axis of virtual batches


@contextlib.contextmanager
def marking(library: Any) -> Iterator[Markers]:
    """Let layers of Keras 3 or tf_keras be traced as markers, subclasses of theirs too.

    Whoever traces passes `OUTER` as `training`, so that a False is a layer's or a model's own.
    """
    markers = Markers()
    keeps_numbers = library.__name__ != "tf_keras"  # which makes a bool of `training`

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if not keeps_numbers:
            inputs = tf.cast(inputs, self.compute_dtype)
            training = None
        return markers.mark(self, inputs, mask, training)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def draw(self: Any, inputs: Any, training: Any = None) -> Any:
        if keeps_numbers and training is False:
            return inputs
        return markers.mark_random(self, inputs)

    kind = library.layers.BatchNormalization
    owner = next(base for base in kind.__mro__ if "call" in vars(base))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(owner, call))
        for random in random_layers.owners(library):
            stack.enter_context(_replaced(random, draw))
        yield markers


OUTER = 0
"""False, and no `False`."""


@contextlib.contextmanager
def _replaced(owner: Any, call: Any) -> Iterator[None]:
    original = owner.call
    owner.call = call
    try:
        yield
    finally:
        owner.call = original


def write_marker(context: Any, node: Any, name: str, _arguments: Any) -> None:
    """Write a PyFunc as a marker, between Transposes where channels are not on axis 1."""
    source, output = node.input[0], node.output[0]
    index, axis, rank = _read_token(node)
    kind = MARKER if axis is not None else RANDOM_MARKER
    if axis is None:  # beside convolutions, whose Transposes then meet
        axis = rank - 1 if rank in _RANKS_OF_CONVOLUTIONS else 1
    dtype, shape = context.get_dtype(source), context.get_shape(source) or [-1] * rank
    context.remove_node(node.name)
    others = [at for at in range(1, rank) if at != axis]
    order = [0, axis, *others][:rank]
    if axis != 1:
        source = context.make_node("Transpose", [source], attr={"perm": order}).output[0]
    marker = context.make_node(
        kind,
        [source],
        attr={"layer": index, "order": order},
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


_RANKS_OF_CONVOLUTIONS = (4, 5)


def _read_token(node: Any) -> tuple[int, int | None, int]:
    """Return index, channel axis and rank; no axis of what draws random numbers."""
    index, *axis, rank = json.loads(node.get_attr_value("token"))
    return index, axis[0] if axis else None, rank
