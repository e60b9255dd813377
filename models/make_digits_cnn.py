"""Train a small digit classifier and export it with live BatchNormalization nodes.

Writes next to this script:

- ``digits_train.npz`` and ``digits_test.npz``: scikit-learn's handwritten digits (1,797 images of
  8x8 pixels), split per class, with the arrays ``image`` (float32, [N, 8, 8, 1], 0 to 1) and
  ``label`` (int64, [N]).
- ``digits_cnn.onnx``: a Keras CNN trained on the first file, in inference form. Its
  BatchNormalization layers follow a convolution, a depthwise convolution, a convolution on a
  residual branch and a dense layer.

How to run::

    pip install -e '.[tensorflow]' scikit-learn
    python models/make_digits_cnn.py

Everything is seeded: a second run on the same machine writes the same bytes. Another number of CPU
cores changes the rounding during training, and with it the trained values.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import tensorflow as tf
import tf2onnx
from onnx import numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

OUTPUT_DIR = Path(__file__).parent
SEED = 0
EPOCHS = 40
BATCH_SIZE = 48
OPSET = 17
MOMENTUM = 0.9
MIN_ACCURACY = 0.97
MAX_DIFFERENCE = 1e-5

# What the constant second input of an operator is called in the exported file.
CONSTANT_NAMES = {
    "Conv": "kernel",
    "MatMul": "kernel",
    "Add": "bias",
    "Reshape": "shape",
    "Squeeze": "axes",
}

Array = npt.NDArray[Any]
Dataset = dict[str, Array]


def load_datasets() -> tuple[Dataset, Dataset]:
    """Return the training and the test split of the digits."""
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=SEED
    )
    return {"image": train_x, "label": train_y}, {"image": test_x, "label": test_y}


def build_model() -> keras.Model:
    """Return the untrained CNN."""
    layers = keras.layers

    def batch_norm(name: str) -> keras.layers.Layer:
        return layers.BatchNormalization(momentum=MOMENTUM, name=name)

    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem_conv")(image)
    x = batch_norm("stem_bn")(x)
    shortcut = layers.ReLU(name="stem_relu")(x)

    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise_conv")(shortcut)
    x = batch_norm("depthwise_bn")(x)
    x = layers.ReLU(name="depthwise_relu")(x)
    x = layers.Conv2D(32, 1, use_bias=False, name="residual_conv")(x)
    x = batch_norm("residual_bn")(x)
    x = layers.Add(name="residual_add")([shortcut, x])
    x = layers.ReLU(name="residual_relu")(x)

    x = layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False, name="down_conv")(x)
    x = batch_norm("down_bn")(x)
    x = layers.ReLU(name="down_relu")(x)

    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(64, use_bias=False, name="hidden")(x)
    x = batch_norm("hidden_bn")(x)
    x = layers.ReLU(name="hidden_relu")(x)
    x = layers.Dense(10, name="logits")(x)
    probabilities = layers.Softmax(name="probabilities")(x)
    return keras.Model(image, probabilities, name="digits_cnn")


def train(model: keras.Model, data: Dataset) -> None:
    """Fit the model; the learning rate falls to 0, so the moving statistics converge."""
    steps = EPOCHS * -(-len(data["label"]) // BATCH_SIZE)
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss="sparse_categorical_crossentropy",
    )
    model.fit(data["image"], data["label"], batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=2)


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Inference-mode BatchNormalization as one TensorFlow op, which tf2onnx maps to one node."""

    def call(self, inputs: tf.Tensor, **_: Any) -> tf.Tensor:
        """Normalize an input of rank 2 or 4 with the moving statistics."""
        channels = inputs.shape[-1]
        rank_2 = inputs.shape.rank == 2
        y = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(inputs, [-1, 1, 1, channels]) if rank_2 else inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(self.moving_mean),
            variance=tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=False,
        ).y
        return tf.reshape(y, [-1, channels]) if rank_2 else y


def batch_norm_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the BatchNormalization layers in order."""
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def export_onnx(model: keras.Model) -> onnx.ModelProto:
    """Convert the trained model without folding its BatchNormalization layers.

    The BatchNormalization parameters are arguments of the traced function: neither TensorFlow nor
    tf2onnx can fold what is not constant. They become initializers again in the ONNX graph.
    """

    def clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
        cls = FusedBatchNormalization if is_batch_norm else type(layer)
        return cls.from_config(layer.get_config())

    fused = keras.models.clone_model(model, clone_function=clone_layer)
    fused.set_weights(model.get_weights())
    variables = {v.path: v for layer in batch_norm_layers(fused) for v in layer.weights}

    @tf.function  # type: ignore[untyped-decorator]
    def forward(image: tf.Tensor, parameters: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        mapping = [(variables[path], value) for path, value in parameters.items()]
        with keras.StatelessScope(state_mapping=mapping):
            return {"probabilities": fused(image, training=False)}

    signature = [
        tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image"),
        {path: tf.TensorSpec(v.shape, tf.float32, name=path) for path, v in variables.items()},
    ]
    exported, _ = tf2onnx.convert.from_function(forward, signature, opset=OPSET)

    graph = exported.graph
    for path, variable in variables.items():
        graph.initializer.append(numpy_helper.from_array(variable.numpy(), path))
    image_input = next(x for x in graph.input if x.name == "image")
    del graph.input[:]
    graph.input.append(image_input)
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"

    remove_batch_norm_reshapes(graph)
    rename(graph, [layer.name for layer in model.layers])
    layers = {layer.name: layer for layer in batch_norm_layers(model)}
    for node in batch_norm_nodes(graph):
        del node.attribute[:]
        for attribute in ("epsilon", "momentum"):
            value = getattr(layers[node.name], attribute)
            node.attribute.append(onnx.helper.make_attribute(attribute, value))

    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=exported.ir_version,
        producer_name="tf2onnx",
    )


def batch_norm_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the BatchNormalization nodes in order."""
    return [node for node in graph.node if node.op_type == "BatchNormalization"]


def remove_batch_norm_reshapes(graph: onnx.GraphProto) -> None:
    """Let BatchNormalization act on [N, C] where it sits between Reshapes to rank 4 and back."""
    producers = {output: node for node in graph.node for output in node.output}
    consumers = {name: node for node in graph.node for name in node.input}
    for node in batch_norm_nodes(graph):
        consumer = consumers[node.output[0]]
        if consumer.op_type != "Reshape":
            continue
        node.output[0] = consumer.output[0]
        graph.node.remove(consumer)
        while (producer := producers[node.input[0]]).op_type == "Reshape":
            node.input[0] = producer.input[0]
            graph.node.remove(producer)
    used = {name for node in graph.node for name in node.input}
    for initializer in [x for x in graph.initializer if x.name not in used]:
        graph.initializer.remove(initializer)


def rename(graph: onnx.GraphProto, layer_names: list[str]) -> None:
    """Name nodes, their outputs and the constants after the Keras layers they come from."""
    graph.name = "digits_cnn"
    graph.doc_string = ""
    # A traced node is called <model>_1/<layer>_1/<op>.
    layers = [node.name.split("/")[1].removesuffix("_1") for node in graph.node]
    if unknown := set(layers) - set(layer_names):
        raise ValueError(f"nodes of no Keras layer: {sorted(unknown)}")
    nodes_per_layer = Counter(layers)
    constants = {x.name: x for x in graph.initializer}
    new_names: dict[str, str] = {}
    for node, layer in zip(graph.node, layers, strict=True):
        node.name = layer if nodes_per_layer[layer] == 1 else f"{layer}/{node.op_type}"
        new_names[node.output[0]] = node.name
        if node.op_type in CONSTANT_NAMES and node.input[1] in constants:
            new_names[node.input[1]] = f"{layer}/{CONSTANT_NAMES[node.op_type]}"
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    for name, constant in constants.items():
        constant.name = new_names.get(name, name)


def accuracy(probabilities: Array, data: Dataset) -> float:
    """Return the share of images whose most probable class is the label."""
    return float((probabilities.argmax(axis=1) == data["label"]).mean())


def check(model: keras.Model, onnx_path: Path, data: Dataset) -> None:
    """Assert that the file is valid, equals the Keras model and classifies the data well."""
    exported = onnx.load(onnx_path)
    onnx.checker.check_model(exported, full_check=True)
    nodes = [node.name for node in batch_norm_nodes(exported.graph)]
    assert nodes == [layer.name for layer in batch_norm_layers(model)], nodes

    expected = model.predict(data["image"], verbose=0)
    session = ort.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(["probabilities"], {"image": data["image"]})
    difference = float(np.abs(actual - expected).max())
    print(f"largest difference between Keras and ONNX Runtime: {difference:.1e}")
    assert difference <= MAX_DIFFERENCE
    for name, probabilities in (("Keras", expected), ("ONNX Runtime", actual)):
        value = accuracy(probabilities, data)
        print(f"test accuracy, {name}: {value:.4f}")
        assert value >= MIN_ACCURACY


def main() -> None:
    """Write the data sets and the model, and check the model."""
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()

    train_data, test_data = load_datasets()
    for name, data in (("train", train_data), ("test", test_data)):
        path = OUTPUT_DIR / f"digits_{name}.npz"
        np.savez_compressed(path, image=data["image"], label=data["label"])

    model = build_model()
    train(model, train_data)
    onnx_path = OUTPUT_DIR / "digits_cnn.onnx"
    onnx.save(export_onnx(model), onnx_path)
    check(model, onnx_path, test_data)


if __name__ == "__main__":
    main()
