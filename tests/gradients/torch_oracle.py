"""ONNX graphs on torch, with its autograd: the oracle of whole gradients.

In float64; in float32 it tells what an independent implementation loses to rounding.

A SyncBatchNormalization normalizes by the statistics of what it is given, so the union of all
pieces as one batch says what replicas must return together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Attributes = dict[str, Any]
Operator = Callable[..., Any]


def gradients(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    loss: str,
    parameters: Sequence[str],
    *,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Float64]:
    """Return d loss / d parameter for each of `parameters`, computed in `dtype`."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        values = run(model, feeds, parameters)
    finally:
        torch.set_default_dtype(usual)
    values[loss].backward()
    found = {}
    for name in parameters:
        grad = values[name].grad
        assert grad is not None, name
        found[name] = grad.numpy().astype(np.float64)
    return found


def run(
    model: onnx.ModelProto, feeds: Mapping[str, Array], parameters: Sequence[str] = ()
) -> dict[str, Any]:
    """Return every value of the main graph; those of `parameters` require gradients.

    Floating-point values are of torch's default type.
    """
    values: dict[str, Any] = {"": None}
    for tensor in model.graph.initializer:
        values[tensor.name] = _tensor(numpy_helper.to_array(tensor))
    values.update({name: _tensor(array) for name, array in feeds.items()})
    for name in parameters:
        values[name].requires_grad_()
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        operands = [values[name] for name in node.input]
        results = OPERATORS[node.op_type](attributes, *operands)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        values.update(zip(node.output, results, strict=False))
    return values


def _tensor(array: Array) -> torch.Tensor:
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if is_float:
        return torch.tensor(array.astype(np.float64)).to(torch.get_default_dtype())
    return torch.tensor(array)


def _conv(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    count = weight.dim() - 2
    strides = attributes.get("strides", [1] * count)
    dilations = attributes.get("dilations", [1] * count)
    pads = _pads(attributes, x.shape[2:], weight.shape[2:], strides, dilations)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[count - 1]
    padded = functional.pad(x, _torch_order(pads))
    return convolve(
        padded,
        weight,
        bias,
        stride=tuple(strides),
        dilation=tuple(dilations),
        groups=attributes.get("group", 1),
    )


def _pads(
    attributes: Attributes,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if not mode.startswith("SAME"):
        return list(attributes.get("pads", [0] * (2 * len(kernel))))
    begins, ends = [], []
    for length, extent, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        covered = (math.ceil(length / stride) - 1) * stride + (extent - 1) * dilation + 1
        total = max(covered - length, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _torch_order(pads: Sequence[int]) -> list[int]:
    """[begins, ends] of the axes to torch's pairs, last axis first."""
    count = len(pads) // 2
    return [pad for axis in reversed(range(count)) for pad in (pads[axis], pads[axis + count])]


def _conv_transpose(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    count = weight.dim() - 2
    strides = attributes.get("strides", [1] * count)
    dilations = attributes.get("dilations", [1] * count)
    extra = attributes.get("output_padding", [0] * count)
    convolve = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[count - 1]
    full = convolve(
        x,
        weight,
        stride=tuple(strides),
        dilation=tuple(dilations),
        groups=attributes.get("group", 1),
    )
    pads = _transposed_pads(attributes, x.shape[2:], full.shape[2:], extra)
    ends = [extra[axis] - pads[axis + count] for axis in range(count)]
    y = functional.pad(full, _torch_order([*(-pad for pad in pads[:count]), *ends]))
    return y if bias is None else y + bias.reshape(-1, *[1] * count)


def _transposed_pads(
    attributes: Attributes,
    size: Sequence[int],
    full: Sequence[int],
    extra: Sequence[int],
) -> list[int]:
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    wanted = attributes.get("output_shape")
    if mode.startswith("SAME") and not wanted:
        strides = attributes.get("strides", [1] * len(size))
        wanted = [length * stride for length, stride in zip(size, strides, strict=True)]
    if not wanted:
        return list(attributes.get("pads", [0] * (2 * len(size))))
    begins, ends = [], []
    for length, more, target in zip(full, extra, wanted[-len(size) :], strict=True):
        total = max(length + more - target, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _batch_normalization(
    attributes: Attributes, x: Any, scale: Any, bias: Any, mean: Any, var: Any
) -> Any:
    epsilon = attributes.get("epsilon", float(np.float32(1e-5)))
    training = bool(attributes.get("training_mode", 0))
    y = functional.batch_norm(
        x,
        None if training else mean,
        None if training else var,
        scale,
        bias,
        training=training,
        eps=epsilon,
    )
    return y, mean, var


def _sync_batch_normalization(
    attributes: Attributes, x: Any, scale: Any, bias: Any, mean: Any, var: Any
) -> Any:
    axis = attributes.get("axis", 1)
    moved = x.movedim(axis, 1)
    given = {**attributes, "training_mode": 1}
    y, *_ = _batch_normalization(given, moved, scale, bias, mean, var)
    return y.movedim(1, axis), mean, var


def _layer_normalization(attributes: Attributes, x: Any, scale: Any, bias: Any = None) -> Any:
    shape = x.shape[attributes.get("axis", -1) % x.dim() :]
    epsilon = attributes.get("epsilon", float(np.float32(1e-5)))
    normal = functional.layer_norm(x, shape, eps=epsilon)
    return normal * scale if bias is None else normal * scale + bias


def _instance_normalization(attributes: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    epsilon = attributes.get("epsilon", float(np.float32(1e-5)))
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _group_normalization(attributes: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    epsilon = attributes.get("epsilon", float(np.float32(1e-5)))
    return functional.group_norm(x, attributes["num_groups"], scale, bias, eps=epsilon)


def _gemm(attributes: Attributes, a: Any, b: Any, c: Any = None) -> Any:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _patches(attributes: Attributes, x: Any, fill: float) -> Any:
    """Return [N, C, places..., window elements], `fill` around the image, in ceil mode too."""
    kernel = attributes["kernel_shape"]
    count = len(kernel)
    strides = attributes.get("strides", [1] * count)
    dilations = attributes.get("dilations", [1] * count)
    pads = _pads(attributes, x.shape[2:], kernel, strides, dilations)
    places = []
    for axis in range(count):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        room = x.shape[2 + axis] + pads[axis] + pads[axis + count] - extent
        steps = room / strides[axis]
        number = (math.ceil(steps) if attributes.get("ceil_mode", 0) else math.floor(steps)) + 1
        if (number - 1) * strides[axis] >= x.shape[2 + axis] + pads[axis]:
            number -= 1
        needed = (number - 1) * strides[axis] + extent - x.shape[2 + axis] - pads[axis]
        pads[axis + count] = max(pads[axis + count], needed)
        places.append(number)
    padded = functional.pad(x, _torch_order(pads), value=fill)
    for axis in range(count):
        index = (
            torch.arange(places[axis])[:, None] * strides[axis]
            + torch.arange(kernel[axis])[None] * dilations[axis]
        )
        padded = padded.index_select(2 + 2 * axis, index.reshape(-1))
        shape = padded.shape
        padded = padded.reshape(*shape[: 2 + 2 * axis], *index.shape, *shape[3 + 2 * axis :])
    order = [0, 1, *range(2, 2 + 2 * count, 2), *range(3, 3 + 2 * count, 2)]
    return padded.permute(order).flatten(2 + count)


def _max_pool(attributes: Attributes, x: Any) -> Any:
    found, where = _patches(attributes, x, -math.inf).max(dim=-1)
    return found, where


def _average_pool(attributes: Attributes, x: Any) -> Any:
    total = _patches(attributes, x, 0.0).sum(dim=-1)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if attributes.get("count_include_pad", 0):
        kernel = attributes["kernel_shape"]
        each = [1] * len(kernel)
        steps = (attributes.get("strides", each), attributes.get("dilations", each))
        pads = _pads(attributes, x.shape[2:], kernel, *steps)
        ones = functional.pad(ones, _torch_order(pads), value=1.0)
        inner = {**attributes, "pads": [0] * len(pads), "auto_pad": b"NOTSET"}
        divisor = _patches(inner, ones, 0.0).sum(dim=-1)
    else:
        divisor = _patches(attributes, ones, 0.0).sum(dim=-1)
    return total / divisor


def _reshape(attributes: Attributes, x: Any, shape: Any) -> Any:
    sizes = [
        x.shape[axis] if size == 0 and not attributes.get("allowzero", 0) else size
        for axis, size in enumerate(shape.tolist())
    ]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Any) -> Any:
    axis = attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(_: Attributes, x: Any, axes: Any = None) -> Any:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(_: Attributes, x: Any, axes: Any) -> Any:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _reduce(function: Operator) -> Operator:
    def reduce(attributes: Attributes, x: Any, axes: Any = None) -> Any:
        chosen = tuple(range(x.dim())) if axes is None else tuple(axes.tolist())
        return function(x, dim=chosen, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _slice(
    _: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Any:
    count = len(starts)
    axes = list(range(count)) if axes is None else axes.tolist()
    steps = [1] * count if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        index = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(index), dtype=torch.int64))
    return x


def _cast(attributes: Attributes, x: Any) -> Any:
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
    is_float = kind.kind == "f" or kind.name == "bfloat16"
    return x.to(torch.get_default_dtype() if is_float else getattr(torch, kind.name))


def _transpose(attributes: Attributes, x: Any) -> Any:
    return x.permute(attributes.get("perm", list(reversed(range(x.dim())))))


def _clip(_: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
    return x.clamp(low, high)


def _constant(attributes: Attributes) -> Any:
    return _tensor(numpy_helper.to_array(attributes["value"]))


def _pad(attributes: Attributes, x: Any, pads: Any, value: Any = None) -> Any:
    assert attributes.get("mode", b"constant") == b"constant"
    fill = 0.0 if value is None else float(value)
    return functional.pad(x, _torch_order(pads.tolist()), value=fill)


OPERATORS: dict[str, Operator] = {
    "Add": lambda _, x, y: x + y,
    "AllReduce": lambda _, x: x,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *xs: torch.cat(xs, dim=a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": lambda _, x, *__: x,
    "Div": lambda _, x, y: x / y,
    "Flatten": _flatten,
    "Gather": lambda a, x, i: torch.tensor(np.take(x.numpy(), i.numpy(), axis=a.get("axis", 0))),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(dim=tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda _, x: x.amax(dim=tuple(range(2, x.dim())), keepdim=True),
    "GroupNormalization": _group_normalization,
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda _, x: functional.hardswish(x),
    "Identity": lambda _, x: x,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "MatMul": lambda _, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda _, x, y: x * y,
    "Pad": _pad,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Shape": lambda _, x: torch.tensor(x.shape),
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(dim=a.get("axis", -1)),
    "Squeeze": _squeeze,
    "Sub": lambda _, x, y: x - y,
    "Sum": lambda _, *xs: sum(xs[1:], xs[0]),
    "SyncBatchNormalization": _sync_batch_normalization,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
