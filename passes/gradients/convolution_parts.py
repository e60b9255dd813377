"""The two gradients of a convolution, each by the kernels that are quickest for its shape.

Measured on ONNX Runtime's CPU with the layers of ResNet-50 and MobileNetV2; `ConvTranspose` and
`Conv` multiply matrices image by image, which is slow where an image has but a few pixels, as the
weight is read again for each.
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.windows import (
    Window,
    crop,
    pad_image,
    patches,
    spatial_sizes,
)

_FEW_POINTS = 16
_FEW_PLACES = 8


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution from an image to a field of outputs.

    Attributes:
        window: How its kernel slides.
        group: Number of groups of channels that do not see each other.
        shape: Of its weight, [channels of the field, channels of the image / group, kernel].
    """

    window: Window
    group: int
    shape: list[int]

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved alone."""
        return self.group == self.shape[0] and self.shape[1] == 1


def weight_gradient(
    tape: GradientTape, convolution: Convolution, image: ir.Value, field: ir.Value
) -> ir.Value:
    """Return the gradient of a convolution's weight.

    Args:
        tape: What nodes are written on.
        convolution: From `image` to `field`.
        image: [N, channels of the image, spatial], a forward value or a gradient.
        field: [N, channels of the field, places].
    """
    if convolution.is_depthwise:
        return _depthwise_weight_gradient(tape, convolution, image, field)
    window, group, shape = convolution.window, convolution.group, convolution.shape
    swap = [1, 0, *range(2, 2 + window.axes)]
    padded = pad_image(tape, tape.op("Transpose", image, perm=swap), window, image)
    seen = patches(tape, padded, window)
    columns = seen[0] if len(seen) == 1 else tape.op("Concat", *seen, axis=1)
    rows = tape.op("Transpose", field, perm=swap)
    if group == 1:
        columns = tape.op("Reshape", columns, tape.ints(math.prod(shape[1:]), -1))
        rows = tape.op("Reshape", rows, tape.ints(shape[0], -1))
        product = tape.op("Gemm", rows, columns, transB=1)
    else:
        columns = tape.op("Reshape", columns, tape.ints(group, math.prod(shape[1:]), -1))
        rows = tape.op("Reshape", rows, tape.ints(group, shape[0] // group, -1))
        product = tape.op("MatMul", rows, tape.op("Transpose", columns, perm=[0, 2, 1]))
    return tape.op("Reshape", product, tape.ints(*shape))


def _depthwise_weight_gradient(
    tape: GradientTape, convolution: Convolution, image: ir.Value, field: ir.Value
) -> ir.Value:
    """Multiply and sum element by element of the kernel: no matrix is large enough to be quick."""
    window = convolution.window
    pixels = tape.ints(*range(2, 2 + window.axes))
    sums = [
        tape.op("ReduceSum", tape.op("Mul", seen, field), pixels, keepdims=0)
        for seen in patches(tape, pad_image(tape, image, window, image), window)
    ]
    stacked = tape.op("Concat", *(tape.op("Unsqueeze", one, tape.ints(2)) for one in sums), axis=2)
    summed = tape.op("ReduceSum", stacked, tape.ints(0), keepdims=0)
    return tape.op("Reshape", summed, tape.ints(*convolution.shape))


def image_gradient(
    tape: GradientTape, convolution: Convolution, dy: ir.Value, weight: ir.Value, node: ir.Node
) -> ir.Value:
    """Return the gradient of the image: the transposed convolution of the field's.

    Args:
        tape: What nodes are written on.
        convolution: From the first input of `node` to its first output.
        dy: The gradient of that output.
        weight: Of the shape of the convolution.
        node: A forward node.
    """
    window, x = convolution.window, node.inputs[0]
    assert x is not None
    places = spatial_sizes(node.outputs[0])
    count = math.inf if places is None else math.prod(places)
    if convolution.group == 1 and window.is_point:
        few = count <= _FEW_POINTS
        return (_of_few_points if few else _of_points)(tape, convolution, dy, weight)
    if places is not None and count <= _FEW_PLACES and convolution.group == 1:
        return _of_images_in_a_row(tape, convolution, dy, weight, x, places)
    full = tape.op(
        "ConvTranspose",
        dy,
        weight,
        strides=window.strides,
        dilations=window.dilations,
        kernel_shape=window.kernel,
        group=convolution.group,
    )
    return crop(tape, window, full, x, None if places is None else window.covered(places))


def _of_points(
    tape: GradientTape, convolution: Convolution, dy: ir.Value, weight: ir.Value
) -> ir.Value:
    """Convolve with the transposed matrix that the weight is."""
    swap = [1, 0, *range(2, 2 + convolution.window.axes)]
    return tape.op("Conv", dy, tape.op("Transpose", weight, perm=swap))


def _of_few_points(
    tape: GradientTape, convolution: Convolution, dy: ir.Value, weight: ir.Value
) -> ir.Value:
    """Multiply by that matrix once for all images."""
    outer, inner = convolution.shape[:2]
    swap = [1, 0, *range(2, 2 + convolution.window.axes)]
    rows = tape.op("Transpose", dy, perm=swap)
    sizes = tape.op("Shape", rows, start=1)
    flat = tape.op("Reshape", rows, tape.ints(outer, -1))
    matrix = tape.op("Reshape", weight, tape.ints(outer, inner))
    product = tape.op("Gemm", matrix, flat, transA=1)
    shape = tape.op("Concat", tape.ints(inner), sizes, axis=0)
    return tape.op("Transpose", tape.op("Reshape", product, shape, allowzero=1), perm=swap)


def _of_images_in_a_row(
    tape: GradientTape,
    convolution: Convolution,
    dy: ir.Value,
    weight: ir.Value,
    x: ir.Value,
    places: list[int],
) -> ir.Value:
    """Transpose the convolution of one long image, in which all lie with gaps between them.

    One more row at its end keeps it from being empty where there are no images.
    """
    window = convolution.window
    outer, inner = convolution.shape[:2]
    rest = [0] * (window.axes - 1)
    swap = [1, 0, *range(2, 2 + window.axes)]
    stride, extent = window.strides[0], window.extents[0]
    length = places[0] + max(0, -(-(extent - stride) // stride))
    rows = tape.op("Transpose", dy, perm=swap)
    apart = tape.op("Pad", rows, tape.ints(*[0] * (window.axes + 4), length - places[0], *rest))
    row = tape.op("Reshape", apart, tape.ints(1, outer, -1, *places[1:]))
    filled = tape.op("Pad", row, tape.ints(*[0] * (window.axes + 4), 1, *rest))
    full = tape.op(
        "ConvTranspose",
        filled,
        weight,
        strides=window.strides,
        dilations=window.dilations,
        kernel_shape=window.kernel,
    )
    cut = tape.op("Pad", full, tape.ints(*[0] * (window.axes + 4), -extent, *rest))
    covered = (stride * length, *window.covered(places)[1:])
    images = tape.op("Reshape", cut, tape.ints(inner, -1, *covered))
    return crop(tape, window, tape.op("Transpose", images, perm=swap), x, covered)
