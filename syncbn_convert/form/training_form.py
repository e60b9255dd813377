"""The training form: its model-local functions, and the node that calls them.

`SyncBatchNormalization` is generic in rank, channel axis and dtype. Its parts:

1.  X becomes [rows, C, columns] by a Reshape, whatever the axis: no Transpose.
2.  ONNX's own training-mode BatchNormalization with momentum 0 returns the mean and population
    variance of the piece at hand; on CPU it is the quickest kernel for them, and computes in two
    passes. ONNX Runtime's kernel writes its running outputs over its last two inputs, be they
    constants or read elsewhere; so these are made afresh at each run, from the moving mean, which
    is an input of the graph and never folded away. Float16 and bfloat16 are cast to float32 first
    (`stash_type`, as in LayerNormalization).
3.  Count n, n*mean and n*(var + mean^2) in float64 go through one AllReduce; a piece without
    samples contributes zeros.
4.  The global mean and variance normalize X with the inference-mode kernel, and update the moving
    statistics: `moving*momentum + batch*(1 - momentum)`, left as they are where the global count
    leaves no degree of freedom.

`AllReduce` is `Identity`, until a runtime registers an operator of its name.
"""

from __future__ import annotations

import functools
from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import gradient_form, provenance
from syncbn_convert.form.batchnorm import FORM_DOMAIN
from syncbn_convert.form.described import described
from syncbn_convert.graph import graphs

DOMAIN = FORM_DOMAIN
VERSION = 1
OP_TYPE = "SyncBatchNormalization"
ALL_REDUCE = "AllReduce"
INPUTS = ["X", "scale", "B", "input_mean", "input_var"]
OUTPUTS = ["Y", "running_mean", "running_var"]
MIN_OPSET = 15
MIN_IR_VERSION = 10

_ALL_REDUCE_TEXT = """
<opset_import: ["" : {opset}], domain: "syncbn">
AllReduce <group_size: int = 0> (X) => (Y) {{ Y = Identity (X) }}
"""

_SYNC_BATCHNORM_TEXT = """
<opset_import: ["" : {opset}, "syncbn" : 1], domain: "syncbn">
SyncBatchNormalization
<epsilon: float = 1e-5, momentum: float = 0.9, axis: int = 1, group_size: int = 0,
 unbiased: int = 0, stash_type: int = 1>
(X, scale, B, input_mean, input_var) => (Y, running_mean, running_var{further})
{{
    x_shape = Shape (X)
    before_axis = Shape <start: int = 0, end: int = @axis> (X)
    from_axis = Shape <start: int = @axis> (X)
    channels = Shape (scale)
    rows = ReduceProd <keepdims: int = 1> (before_axis)
    row_size = ReduceProd <keepdims: int = 1> (from_axis)
    first = Constant <value: tensor = int64[1] {{0}}> ()
    one_count = Constant <value: tensor = int64[1] {{1}}> ()
    axis_size = Slice (from_axis, first, one_count)
    axis_divisor = Max (axis_size, one_count)
    columns = Div (row_size, axis_divisor)
    folded_shape = Concat <axis: int = 0> (rows, axis_size, columns)
    local_size = Mul (rows, columns)
    x_stash = Cast <to: int = @stash_type> (X)
    x_folded = Reshape <allowzero: int = 1> (x_stash, folded_shape)

    scale_stash = Cast <to: int = @stash_type> (scale)
    bias_stash = Cast <to: int = @stash_type> (B)
    never = Less (input_mean, input_mean)
    mean_room = Cast <to: int = @stash_type> (never)
    var_room = Neg (mean_room)
    unused, local_mean_stash, local_var_stash =
        BatchNormalization <training_mode: int = 1, momentum: float = 0.0>
        (x_folded, scale_stash, bias_stash, mean_room, var_room)

    zero = Constant <value: tensor = double[1] {{0.0}}> ()
    one = Constant <value: tensor = double[1] {{1.0}}> ()
    local_count = Cast <to: int = 11> (local_size)
    local_mean = Cast <to: int = 11> (local_mean_stash)
    local_var = Cast <to: int = 11> (local_var_stash)
    local_square = Mul (local_mean, local_mean)
    local_second = Add (local_var, local_square)
    local_moments = Concat <axis: int = 0> (one, local_mean, local_second)
    weighted_moments = Mul (local_moments, local_count)
    has_samples = Greater (local_count, zero)
    payload = Where (has_samples, weighted_moments, zero)
    total = syncbn.AllReduce <group_size: int = @group_size> (payload)

    split_sizes = Concat <axis: int = 0> (one_count, channels, channels)
    count, mean_sum, second_sum = Split <axis: int = 0> (total, split_sizes)
    divisor = Max (count, one)
    mean = Div (mean_sum, divisor)
    second = Div (second_sum, divisor)
    square = Mul (mean, mean)
    raw_var = Sub (second, square)
    var = Max (raw_var, zero)

    mean_stash = Cast <to: int = @stash_type> (mean)
    var_stash = Cast <to: int = @stash_type> (var)
    y_folded = BatchNormalization <epsilon: float = @epsilon>
        (x_folded, scale_stash, bias_stash, mean_stash, var_stash)
    y_stash = Reshape <allowzero: int = 1> (y_folded, x_shape)
    Y = CastLike (y_stash, X)

    lost_freedom_int = Constant <value_int: int = @unbiased> ()
    lost_freedom = Cast <to: int = 11> (lost_freedom_int)
    freedom = Sub (count, lost_freedom)
    has_freedom = Greater (freedom, zero)
    correction_divisor = Max (freedom, one)
    correction = Div (count, correction_divisor)
    batch_var = Mul (var, correction)
    momentum_float = Constant <value_float: float = @momentum> ()
    momentum = Cast <to: int = 11> (momentum_float)
    update = Sub (one, momentum)
    moving = Concat <axis: int = 0> (input_mean, input_var)
    old = Cast <to: int = 11> (moving)
    batch = Concat <axis: int = 0> (mean, batch_var)
    kept = Mul (old, momentum)
    added = Mul (batch, update)
    moved = Add (kept, added)
    next = Where (has_freedom, moved, old)
    running = CastLike (next, input_mean)
    half_sizes = Concat <axis: int = 0> (channels, channels)
    running_mean, running_var = Split <axis: int = 0> (running, half_sizes)
{saved}}}
"""

_SAVED_OUTPUTS = ("saved_mean", "saved_inv_std", "count")
_SAVED_TEXT = """
    saved_mean = Identity (mean)
    epsilon_float = Constant <value_float: float = @epsilon> ()
    epsilon = Cast <to: int = 11> (epsilon_float)
    var_epsilon = Add (var, epsilon)
    std = Sqrt (var_epsilon)
    saved_inv_std = Reciprocal (std)
"""
SAVED = slice(3, 6)
"""Outputs that a gradient reads: saved_mean and saved_inv_std [C], count [1], float64."""


def add_to(model: ir.Model, opset: int) -> None:
    """Import the `syncbn` domain and add its functions, replacing those that are there.

    SyncBatchNormalization returns what the model's nodes take: its saved statistics only if they
    are asked for. Its gradient is added if a node calls it.

    Args:
        model: Changed in place.
        opset: Standard opset that the functions are spelled for.
    """
    model.opset_imports[DOMAIN] = VERSION
    saved = returns_saved(model)
    if saved:
        _let_all_return_saved(model)
    gradient = any(
        node.op_type == gradient_form.OP_TYPE and node.domain == DOMAIN for node in model.graph
    )
    for text in texts(opset, saved=saved, gradient=gradient):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        model.functions[function.identifier()] = function


def texts(opset: int, *, saved: bool, gradient: bool) -> list[str]:
    """Return the functions of the form as ONNX's text.

    Args:
        opset: Standard opset that they are spelled for.
        saved: Whether SyncBatchNormalization returns its saved statistics.
        gradient: Whether to return its gradient, too.
    """
    found = [
        _ALL_REDUCE_TEXT.format(opset=opset),
        _SYNC_BATCHNORM_TEXT.format(
            opset=opset,
            further="".join(f", {name}" for name in _SAVED_OUTPUTS) if saved else "",
            saved=_SAVED_TEXT if saved else "",
        ),
    ]
    return [*found, gradient_form.TEXT.format(opset=opset)] if gradient else found


def returns_saved(model: ir.Model) -> bool:
    """Whether a SyncBatchNormalization of the model returns its saved statistics."""
    return any(len(node.outputs) >= SAVED.stop for node in nodes(model))


def _let_all_return_saved(model: ir.Model) -> None:
    """Name all outputs of every node: ONNX's inference wants as many as the function has."""
    short = [node for node in nodes(model) if len(node.outputs) < SAVED.stop]
    names = graphs.Names(model) if short else None
    for node in short:
        count = len(node.outputs)
        node.resize_outputs(SAVED.stop)
        for output, name in zip(node.outputs[count:], _SAVED_OUTPUTS[count - 3 :], strict=True):
            assert names is not None
            output.name = names.value(f"{graphs.label(node)}.{name}")
            output.type = ir.TensorType(ir.DataType.DOUBLE)


def check_domain(model: ir.Model) -> None:
    """Refuse a model in which the `syncbn` domain is not that of the training form.

    Raises:
        ConversionError: naming the function or the node.
    """
    reason = reason_against(model)
    if reason:
        raise ConversionError(reason)


def reason_against(model: ir.Model, *, runs: bool = False) -> str:
    """Return why what is called like a training form is none; empty where it is one, or nothing.

    Args:
        model: The model.
        runs: Whether its functions are to run as they are, and not to be replaced by what they are
            called: then their signatures are enough.
    """
    is_right = _has_own_signature if runs else _is_own
    for function in model.functions.values():
        if function.domain == DOMAIN and not is_right(function):
            return (
                f"the model has a function '{DOMAIN}::{function.name}' of its own, and that domain "
                "is the training form's; rename the function's domain"
            )
    described = any(key[:2] == (DOMAIN, OP_TYPE) for key in model.functions)
    for node in nodes(model):
        if len(node.inputs) != len(INPUTS) or None in node.inputs:
            return (
                f"node '{graphs.label(node)}' is called as one of the training form and has "
                f"{len(node.inputs)} inputs instead of {len(INPUTS)}; convert the model again"
            )
        if not described and provenance.read(node) is None:
            return (
                f"node '{graphs.label(node)}' is called as one of the training form, and the model "
                "has neither a function nor a note that says what it is; convert the model again"
            )
    return ""


def check_whole(form: ir.Model) -> None:
    """Refuse a training form whose nodes do not return what the next step needs.

    Raises:
        ConversionError: naming the first node.
    """
    if reason := reason_against(form, runs=True):
        raise ConversionError(reason)
    if nodes(form) and not any(key[:2] == (DOMAIN, OP_TYPE) for key in form.functions):
        raise ConversionError(
            f"the function '{DOMAIN}::{OP_TYPE}' has been taken from the training form; fold the "
            "form and convert the result"
        )
    for node in nodes(form):
        if len(node.outputs) < len(OUTPUTS) or not all(v.name for v in node.outputs[1:3]):
            raise ConversionError(
                f"node '{graphs.label(node)}' does not return its running statistics, which "
                "another tool has taken away; fold the form and convert the result"
            )


def _has_own_signature(function: ir.Function) -> bool:
    names = [str(value.name) for value in function.inputs]
    if function.name == ALL_REDUCE:
        return names == ["X"]
    if function.name == gradient_form.OP_TYPE:
        return names == gradient_form.INPUTS
    return function.name == OP_TYPE and is_sync_function(function)


def _is_own(function: ir.Function) -> bool:
    """Whether a function is one of the form, by all that it computes: a name proves nothing."""
    own = _own_functions(
        function.opset_imports.get("", MIN_OPSET), len(function.outputs) > SAVED.start
    )
    return function.name in own and described(function) == own[function.name]


@functools.lru_cache(maxsize=32)
def _own_functions(opset: int, saved: bool) -> dict[str, Any]:
    found = {}
    for text in texts(opset, saved=saved, gradient=True):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        found[function.name] = described(function)
    return found


def is_sync_function(function: ir.Function) -> bool:
    """Whether a function, of whatever name, has the signature of SyncBatchNormalization."""
    inputs, outputs = (
        [str(value.name) for value in values] for values in (function.inputs, function.outputs)
    )
    return inputs == INPUTS and outputs[: len(OUTPUTS)] == OUTPUTS


def remove_from(model: ir.Model) -> None:
    """Remove the functions and the import of the `syncbn` domain."""
    for identifier in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[identifier]
    model.opset_imports.pop(DOMAIN, None)


def stash_type(dtype: ir.DataType | None) -> int:
    """Return the type that statistics of an input of `dtype` are computed in: float32 or wider."""
    return int(ir.DataType.DOUBLE if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT)


def is_sync_batchnorm(node: ir.Node) -> bool:
    """Whether the node is a `syncbn::SyncBatchNormalization`."""
    return node.op_type == OP_TYPE and node.domain == DOMAIN


def nodes(model: ir.Model) -> list[ir.Node]:
    """Return the SyncBatchNormalization nodes of the main graph, in its order."""
    return [node for node in model.graph if is_sync_batchnorm(node)]


def all_reduces(function: ir.Function) -> list[ir.Node]:
    """Return the AllReduce nodes of a function, in its order."""
    return [node for node in function if node.op_type == ALL_REDUCE and node.domain == DOMAIN]


def statistics_of(model: ir.Model) -> dict[str, str]:
    """Return the output that holds the next value of each moving statistic."""
    following: dict[str, str] = {}
    state_of: dict[int, str] = {}
    for node in nodes(model):
        for index in (3, 4):
            value = node.inputs[index]
            assert value is not None
            name = state_of.get(id(value), str(value.name))
            output = node.outputs[index - 2]
            state_of[id(output)] = name
            following[name] = str(output.name)
    return following
