"""`SyncBatchNormalizationGrad`: the gradient of the training form's normalization.

With N the global count, x^ = (x - mean) * inv_std and sums over all replicas of the group,

    dX = scale * inv_std * (dY - sum(dY) / N - x^ * sum(dY * x^) / N)

and the local sums are this replica's share of the gradients of `scale` (of dY * x^) and of B (of
dY). One AllReduce of 2C float64 values; a replica whose piece is empty gives zeros. As in the
forward function X is [rows, C, columns], whatever the channel axis. Affine maps of a channel are
spelled as inference-mode BatchNormalization, which is one quick kernel on CPU.
"""

from __future__ import annotations

OP_TYPE = "SyncBatchNormalizationGrad"
INPUTS = ["dY", "X", "scale", "saved_mean", "saved_inv_std", "count"]

TEXT = """
<opset_import: ["" : {opset}, "syncbn" : 1], domain: "syncbn">
SyncBatchNormalizationGrad <axis: int = 1, group_size: int = 0, stash_type: int = 1>
(dY, X, scale, saved_mean, saved_inv_std, count) => (dX, dscale, dB)
{{
    x_shape = Shape (X)
    before_axis = Shape <start: int = 0, end: int = @axis> (X)
    from_axis = Shape <start: int = @axis> (X)
    channels = Shape (scale)
    rows = ReduceProd <keepdims: int = 1> (before_axis)
    row_size = ReduceProd <keepdims: int = 1> (from_axis)
    first = Constant <value: tensor = int64[1] {{0}}> ()
    one_count = Constant <value: tensor = int64[1] {{1}}> ()
    last = Constant <value: tensor = int64[1] {{2}}> ()
    axis_size = Slice (from_axis, first, one_count)
    axis_divisor = Max (axis_size, one_count)
    columns = Div (row_size, axis_divisor)
    folded_shape = Concat <axis: int = 0> (rows, axis_size, columns)
    x_stash = Cast <to: int = @stash_type> (X)
    x_folded = Reshape <allowzero: int = 1> (x_stash, folded_shape)
    dy_stash = Cast <to: int = @stash_type> (dY)
    dy_folded = Reshape <allowzero: int = 1> (dy_stash, folded_shape)

    zero = Constant <value: tensor = double[1] {{0.0}}> ()
    one = Constant <value: tensor = double[1] {{1.0}}> ()
    zeros = Mul (saved_mean, zero)
    ones = Add (zeros, one)
    zeros_stash = Cast <to: int = @stash_type> (zeros)
    ones_stash = Cast <to: int = @stash_type> (ones)
    mean_stash = Cast <to: int = @stash_type> (saved_mean)
    inv_std_stash = Cast <to: int = @stash_type> (saved_inv_std)
    x_hat = BatchNormalization <epsilon: float = 0.0>
        (x_folded, inv_std_stash, zeros_stash, mean_stash, ones_stash)
    dy_x_hat = Mul (dy_folded, x_hat)
    row_dy = ReduceSum <keepdims: int = 0> (dy_folded, last)
    row_dy_x_hat = ReduceSum <keepdims: int = 0> (dy_x_hat, last)
    row_sums_stash = Concat <axis: int = 1> (row_dy, row_dy_x_hat)
    row_sums = Cast <to: int = 11> (row_sums_stash)
    local = ReduceSum <keepdims: int = 0> (row_sums, first)
    total = syncbn.AllReduce <group_size: int = @group_size> (local)

    split_sizes = Concat <axis: int = 0> (channels, channels)
    local_dy, local_dy_x_hat = Split <axis: int = 0> (local, split_sizes)
    dB = CastLike (local_dy, scale)
    dscale = CastLike (local_dy_x_hat, scale)

    divisor = Max (count, one)
    average = Div (total, divisor)
    average_dy, average_dy_x_hat = Split <axis: int = 0> (average, split_sizes)
    scale_wide = Cast <to: int = 11> (scale)
    slope = Mul (scale_wide, saved_inv_std)
    inner = Mul (slope, average_dy_x_hat)
    opposite = Neg (inner)
    slope_stash = Cast <to: int = @stash_type> (slope)
    opposite_stash = Cast <to: int = @stash_type> (opposite)
    average_stash = Cast <to: int = @stash_type> (average_dy)
    from_dy = BatchNormalization <epsilon: float = 0.0>
        (dy_folded, slope_stash, zeros_stash, average_stash, ones_stash)
    from_x = BatchNormalization <epsilon: float = 0.0>
        (x_hat, opposite_stash, zeros_stash, zeros_stash, ones_stash)
    dx_folded = Add (from_dy, from_x)
    dx_stash = Reshape <allowzero: int = 1> (dx_folded, x_shape)
    dX = CastLike (dx_stash, X)
}}
"""
