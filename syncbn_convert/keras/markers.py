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

MARKER = "KerasBatchNormalization"
DOMAIN = "syncbn_convert.keras"


class Markers:
    """The layers that were traced as markers.

    Attributes:
        layers: The layers, by index.
        masked: Indices of those that are called with a mask.
    """

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.masked: set[int] = set()

    def mark(self, layer: Any, inputs: Any, mask: Any) -> Any:
        """Return what stands for the output of `layer`."""
        index = next((at for at, known in enumerate(self.layers) if known is layer), None)
        if index is None:
            index = len(self.layers)
            self.layers.append(layer)
        if mask is not None:
            self.masked.add(index)
        return tf.cast(marked(inputs, index, channel_axis(layer)), layer.compute_dtype)


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
    """Let layers of Keras 3 or tf_keras be traced as markers, subclasses of theirs too."""
    markers = Markers()

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def call(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        del training
        if rounds_first:
            inputs = tf.cast(inputs, self.compute_dtype)
        return markers.mark(self, inputs, mask)

    rounds_first = library.__name__ == "tf_keras"
    kind = library.layers.BatchNormalization
    owner = next(base for base in kind.__mro__ if "call" in vars(base))
    original = owner.call
    owner.call = call
    try:
        yield markers
    finally:
        owner.call = original


def write_marker(context: Any, node: Any, name: str, _arguments: Any) -> None:
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
