"""Normalizations, operators with weights, and affine maps."""

from __future__ import annotations

from typing import Any

from tests.random_graphs.sketch import Scope, Shape, Value
from tests.random_graphs.steps import spatial, step


@step(9)
def batchnorm(scope: Scope, x: Value) -> Value:
    if len(x.shape) < 2:
        return x
    draw, channels = scope.draw, x.shape[1]
    parameters = _parameters(scope, channels)
    attributes: dict[str, Any] = {}
    if draw.flag():
        attributes["epsilon"] = draw.one_of(1e-3, 1e-5, 0.1, 1e-7, 0.0)
    if draw.flag():
        attributes["momentum"] = draw.one_of(0.9, 0.1, 0.99, 0.0, 1.0)
    if scope.opset < 9 and draw.flag():
        attributes["spatial"] = 1
    trains = draw.flag(4)
    outputs = [x.shape]
    if scope.opset >= 14 and (trains or draw.flag(6)):
        attributes["training_mode"] = int(trains)
    if trains:
        outputs += [(channels,)] * (2 if scope.opset >= 14 else 4)
    y, *statistics = scope.add_all("BatchNormalization", [x, *parameters], outputs, **attributes)
    if statistics and scope.kind == "main" and draw.flag(4):
        scope.statistics.append(draw.one_of(*statistics[:2]))
    return y


def _parameters(scope: Scope, channels: int) -> list[Value]:
    draw = scope.draw
    if scope.layers.get(channels) and draw.flag(4):
        return draw.one_of(*scope.layers[channels])
    signs = draw.one_of(1.0, 1.0, -1.0)
    scale = draw.uniform(0.5, 2.0, channels) * signs
    if draw.flag(12):
        scale[0] = 0.0
    neutral = draw.flag(12)
    bias, mean = (draw.normal(channels) * (not neutral) for _ in range(2))
    arrays = {"scale": scale, "bias": bias, "mean": mean, "var": draw.uniform(0.3, 3, channels)}
    found = [scope.constant(array, role) for role, array in arrays.items()]
    scope.layers.setdefault(channels, []).append(found)
    return found


@step(6)
def conv(scope: Scope, x: Value) -> Value:
    sizes = spatial(x)
    if sizes is None:
        return x
    draw, channels = scope.draw, x.shape[1]
    group = draw.one_of(*[1] * 3, *_divisors(channels))
    outputs = group * draw.integer(1, 3)
    kernel = [draw.integer(1, min(3, size)) for size in sizes]
    attributes: dict[str, Any] = {"group": group} if group > 1 or draw.flag(4) else {}
    sizes = place(scope, attributes, sizes, kernel)
    if draw.flag(4):
        attributes["kernel_shape"] = kernel
    reads: list[Value | None] = [x]
    reads += [scope.constant(draw.normal(outputs, channels // group, *kernel), "conv")]
    reads += _bias(scope, outputs)
    return scope.add("Conv", reads, (x.shape[0], outputs, *sizes), **attributes)


def _bias(scope: Scope, channels: int) -> list[Value | None]:
    kind = scope.draw.one_of("none", "bias", "bias", "empty")
    if kind == "bias":
        return [scope.constant(scope.draw.normal(channels), "bias")]
    return [None] if kind == "empty" else []


def _divisors(number: int) -> list[int]:
    return [group for group in range(1, number + 1) if number % group == 0]


def place(
    scope: Scope,
    attributes: dict[str, Any],
    sizes: Shape,
    kernel: list[int],
    dilates: bool = True,
) -> Shape:
    """Draw strides, dilations and padding; return the sizes of the result."""
    draw, rank = scope.draw, len(kernel)
    strides = [draw.one_of(1, 1, 2) for _ in kernel]
    dilations = [1] * rank
    if dilates and draw.flag(4):
        dilations = [2 if (width - 1) * 2 + 1 <= size else 1
                     for size, width in zip(sizes, kernel, strict=True)]  # fmt: skip
        attributes["dilations"] = dilations
    if max(strides) > 1 or draw.flag(4):
        attributes["strides"] = strides
    reach = [(width - 1) * dilation + 1 for width, dilation in zip(kernel, dilations, strict=True)]
    runs = max(dilations) == 1 and all(map(int.__ge__, kernel, strides))
    same = ["SAME_UPPER", "SAME_LOWER"] if runs else []
    kind = draw.one_of("none", "none", "pads", "VALID", *same)
    if kind.startswith("SAME"):
        attributes["auto_pad"] = kind
        return tuple(-(-size // s) for size, s in zip(sizes, strides, strict=True))
    pads = [0] * 2 * rank
    if kind == "pads":
        pads = [draw.integer(0, min(1, width - 1)) for width in (*kernel, *kernel)]
        attributes["pads"] = pads
    elif kind == "VALID":
        attributes["auto_pad"] = kind
    return tuple(
        (size + before + behind - width) // stride + 1
        for size, before, behind, width, stride in zip(
            sizes, pads[:rank], pads[rank:], reach, strides, strict=True
        )
    )


@step(2)
def conv_transpose(scope: Scope, x: Value) -> Value:
    sizes = spatial(x)
    if sizes is None:
        return x
    draw, channels, rank = scope.draw, x.shape[1], len(sizes)
    group = draw.one_of(*[1] * 2, *_divisors(channels))
    each = draw.integer(1, 2)
    kernel = [draw.integer(1, 2) for _ in sizes]
    strides = [draw.integer(1, 2) for _ in sizes]
    extra = [draw.integer(0, stride - 1) for stride in strides]
    pads = [draw.integer(0, min(1, width - 1)) if size > 1 else 0
            for size, width in [*zip(sizes, kernel, strict=True)] * 2]  # fmt: skip
    attributes: dict[str, Any] = {"group": group} if group > 1 else {}
    if max(strides) > 1:
        attributes["strides"] = strides
    if max(extra):
        attributes["output_padding"] = extra
    if max(pads):
        attributes["pads"] = pads
    reads: list[Value | None] = [x]
    reads += [scope.constant(draw.normal(channels, each, *kernel), "transposed")]
    reads += _bias(scope, each * group)
    result = tuple(
        (size - 1) * stride + width + more - before - behind
        for size, stride, width, more, before, behind in zip(
            sizes, strides, kernel, extra, pads[:rank], pads[rank:], strict=True
        )
    )
    return scope.add("ConvTranspose", reads, (x.shape[0], each * group, *result), **attributes)


@step(4)
def matmul(scope: Scope, x: Value) -> Value:
    draw = scope.draw
    if len(x.shape) < 2:
        return x
    columns = draw.integer(1, 4)
    if len(x.shape) > 2 and draw.flag():
        weight = scope.constant(draw.normal(columns, x.shape[-2]), "left")
        return scope.add("MatMul", [weight, x], (*x.shape[:-2], columns, x.shape[-1]))
    weight = scope.constant(draw.normal(x.shape[-1], columns), "right")
    return scope.add("MatMul", [x, weight], (*x.shape[:-1], columns))


@step(3)
def gemm(scope: Scope, x: Value) -> Value:
    if len(x.shape) != 2:
        return x
    draw = scope.draw
    rows, columns = x.shape[1], draw.integer(1, 4)
    attributes: dict[str, Any] = {}
    for name in ("alpha", "beta"):
        if draw.flag(3):
            attributes[name] = draw.one_of(0.5, 2.0, -1.0)
    turned = draw.flag()
    if turned:
        attributes["transB"] = 1
    shape = (columns, rows) if turned else (rows, columns)
    reads = [x, scope.constant(draw.normal(*shape), "gemm")]
    biases: list[Shape | None] = [(columns,), (1, columns), (1,), (), (x.shape[0], 1)]
    if scope.opset >= 11:
        biases.append(None)
    if scope.sketch.main.is_dynamic:
        biases.remove((x.shape[0], 1))
    bias = draw.one_of(*biases)
    if bias is not None:
        reads.append(scope.constant(draw.normal(*bias)))
    return scope.add("Gemm", reads, (x.shape[0], columns), **attributes)


@step(7)
def affine(scope: Scope, x: Value) -> Value:
    """Add, subtract, multiply or divide by a constant of whatever shape."""
    draw, rank = scope.draw, len(x.shape)
    shapes: list[Shape] = [(), (1,), (1,) * rank]
    if rank > 1:
        per_channel = (x.shape[1], *[1] * (rank - 2))
        shapes += [per_channel, per_channel, (1, *per_channel), (x.shape[-1],)]
    if not scope.sketch.main.is_dynamic and draw.flag(4):
        shapes = [x.shape]
    shape = draw.one_of(*shapes)
    op_type = draw.one_of("Add", "Sub", "Mul", "Div")
    array = draw.normal(*shape)
    if op_type in ("Mul", "Div"):
        array = draw.uniform(0.5, 2.0, *shape)
    constant = scope.constant(array)
    reads = [constant, x] if op_type != "Div" and draw.flag(4) else [x, constant]
    return scope.add(op_type, reads, x.shape, dtype=x.dtype)
