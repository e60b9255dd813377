"""ResNet-50 (v1.5: the 3x3 convolution carries the stride), 53 BatchNormalization, seeded weights.

`build` returns it in inference mode, for `convert`; or with every node in ONNX's own training mode,
its moving statistics fed as inputs and their next values returned, which is what the training form
does without synchronizing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
CLASSES = 1000
INPUT = "image"
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


@dataclasses.dataclass
class _Builder:
    training: bool
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    initializers: list[onnx.TensorProto] = dataclasses.field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = dataclasses.field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = dataclasses.field(default_factory=list)

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op_type: str, name: str, operands: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, operands, [f"{name}.y"], name, **attributes))
        return f"{name}.y"

    def conv(self, x: str, name: str, shape: tuple[int, int, int], stride: int = 1) -> str:
        channels_out, channels_in, size = shape
        fan_in = channels_in * size * size
        kernel = self.random.standard_normal((channels_out, channels_in, size, size))
        weight = self.weight(f"{name}.weight", kernel * np.sqrt(2 / fan_in))
        pads = [size // 2] * 4
        y = self.node(
            "Conv", name, [x, weight], kernel_shape=[size, size], strides=[stride] * 2, pads=pads
        )
        return self.batchnorm(y, f"{name}.norm", channels_out)

    def batchnorm(self, x: str, name: str, channels: int) -> str:
        operands = [
            x,
            self.weight(f"{name}.scale", self.random.uniform(0.5, 1.0, channels)),
            self.weight(f"{name}.bias", self.random.standard_normal(channels) * 0.1),
            self.weight(f"{name}.mean", np.zeros(channels)),
            self.weight(f"{name}.var", np.ones(channels)),
        ]
        y = self.node("BatchNormalization", name, operands, epsilon=1e-5, momentum=0.9)
        if self.training:
            node = self.nodes[-1]
            node.attribute.append(helper.make_attribute("training_mode", 1))
            for statistic in operands[3:]:
                node.output.append(f"{statistic}.next")
                self.inputs.append(_float(statistic, [channels]))
                self.outputs.append(_float(f"{statistic}.next", [channels]))
        return y

    def bottleneck(self, x: str, name: str, channels: tuple[int, int], stride: int) -> str:
        width, channels_in = channels
        y = self.conv(x, f"{name}.1", (width, channels_in, 1))
        y = self.node("Relu", f"{name}.1.relu", [y])
        y = self.conv(y, f"{name}.2", (width, width, 3), stride)
        y = self.node("Relu", f"{name}.2.relu", [y])
        y = self.conv(y, f"{name}.3", (4 * width, width, 1))
        if channels_in != 4 * width:
            x = self.conv(x, f"{name}.shortcut", (4 * width, channels_in, 1), stride)
        y = self.node("Add", f"{name}.add", [y, x])
        return self.node("Relu", f"{name}.relu", [y])

    def network(self) -> str:
        y = self.conv(INPUT, "stem", (64, 3, 7), 2)
        y = self.node("Relu", "stem.relu", [y])
        y = self.node(
            "MaxPool", "stem.pool", [y], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        )
        channels_in = 64
        for stage, (width, blocks, stride) in enumerate(_STAGES, start=1):
            for block in range(blocks):
                name = f"stage{stage}.{block}"
                y = self.bottleneck(y, name, (width, channels_in), stride if block == 0 else 1)
                channels_in = 4 * width
        y = self.node("GlobalAveragePool", "pool", [y])
        y = self.node("Flatten", "flatten", [y])
        weight = self.weight(
            "fc.weight", self.random.standard_normal((channels_in, CLASSES)) * 0.02
        )
        return self.node("Gemm", "fc", [y, weight, self.weight("fc.bias", np.zeros(CLASSES))])


def build(*, training: bool = False, image_size: int = 64, seed: int = 0) -> onnx.ModelProto:
    """Build the network, with a dynamic batch.

    Args:
        training: Whether its nodes are ONNX training-mode BatchNormalization.
        image_size: Height and width.
        seed: Of the weights.
    """
    builder = _Builder(training, np.random.default_rng(seed))
    logits = builder.network()
    graph = helper.make_graph(
        builder.nodes,
        "resnet50",
        [_float(INPUT, ["N", 3, image_size, image_size]), *builder.inputs],
        [_float(logits, ["N", CLASSES]), *builder.outputs],
        builder.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _float(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


class Kernels:
    """The network with ONNX's training-mode kernels, which keeps its state as ReplicaSession does.

    Its running outputs are outputs of the graph: the kernel overwrites constants otherwise.

    Args:
        image_size: Height and width.
    """

    def __init__(self, image_size: int) -> None:
        model = build(training=True, image_size=image_size)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._state = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(
                numpy_helper.to_array(weights[name]).copy()
            )
            for name in (value.name for value in self._session.get_inputs())
            if name in weights
        }

    def step(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Run one step; return all outputs by name."""
        feed = {INPUT: onnxruntime.OrtValue.ortvalue_from_numpy(images)}
        results = self._session.run_with_ort_values(self._names, {**feed, **self._state})
        by_name = dict(zip(self._names, results, strict=True))
        self._state = {name: by_name[f"{name}.next"] for name in self._state}
        return {name: value.numpy() for name, value in by_name.items()}
