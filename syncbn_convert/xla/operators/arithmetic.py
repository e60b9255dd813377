"""Arithmetic, comparisons, casts and functions of one variable."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

from syncbn_convert.xla.sample_axes import aligned, like_first, nowhere
from syncbn_convert.xla.translations import Array, Call, operator

_LARGEST_POWER = 64


@operator("Add", "Sub", "Mul", samples=aligned)
def arithmetic(at: Call, left: Array, right: Array) -> Array:
    """Any broadcasting."""
    name = {"Add": "add", "Sub": "subtract", "Mul": "multiply"}[at.node.op_type]
    return getattr(at.xp, name)(*_alike(left, right))


@operator("Div", samples=aligned)
def divide(at: Call, left: Array, right: Array) -> Array:
    """Of integers towards zero."""
    left, right = _alike(left, right)
    if not _whole(left):
        return at.xp.divide(left, right)
    if at.xp is np:
        return (np.sign(left) * np.sign(right) * (abs(left) // abs(right))).astype(left.dtype)
    return lax.div(*jnp.broadcast_arrays(left, right))


@operator("Mod", samples=aligned)
def remainder(at: Call, left: Array, right: Array) -> Array:
    """With the sign of the divisor, or of the dividend (fmod)."""
    return (at.xp.fmod if at.integer("fmod", 0) else at.xp.mod)(*_alike(left, right))


@operator("Sum", samples=aligned)
def add_up(at: Call, *operands: Array) -> Array:
    """Any number of inputs."""
    return functools.reduce(at.xp.add, operands)


@operator("Mean", samples=aligned)
def mean(at: Call, *operands: Array) -> Array:
    """Any number of inputs."""
    total = functools.reduce(at.xp.add, operands)
    return total / np.asarray(len(operands), total.dtype)


@operator("Max", "Min", samples=aligned)
def extreme(at: Call, *operands: Array) -> Array:
    """Inputs that tie share the gradient evenly."""
    name = "maximum" if at.node.op_type == "Max" else "minimum"
    return functools.reduce(getattr(at.xp, name), operands)


@operator("Pow", kind="wide", samples=aligned)
def power(at: Call, base: Array, exponent: Array) -> Array:
    """The exponent gets no gradient where the base is at most 0."""
    if at.xp is np:
        return np.power(base, exponent.astype(base.dtype)).astype(base.dtype)
    if isinstance(exponent, np.ndarray) and exponent.size == 1:
        number = float(exponent.reshape(()))
        if number == int(number) and abs(number) <= _LARGEST_POWER:
            result = lax.integer_pow(base, int(number))
            return jnp.broadcast_to(result, np.broadcast_shapes(base.shape, exponent.shape))
    exponent = lax.convert_element_type(exponent, base.dtype)
    result = jnp.power(base, lax.stop_gradient(exponent))
    if isinstance(exponent, np.ndarray) or _whole(base):
        return result
    positive = base > 0
    slope = jnp.power(lax.stop_gradient(jnp.where(positive, base, 1)), exponent)
    return result + jnp.where(positive, slope - lax.stop_gradient(slope), 0)


@operator("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", samples=aligned)
def compare(at: Call, left: Array, right: Array) -> Array:
    """Any broadcasting."""
    return getattr(at.xp, _COMPARISONS[at.node.op_type])(left, right)


_COMPARISONS = {
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Equal": "equal",
}


@operator("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", samples=aligned)
def logic(at: Call, left: Array, right: Array) -> Array:
    """Bit by bit, which for bools is logic."""
    name = at.node.op_type.removeprefix("Bitwise").lower()
    return getattr(at.xp, f"bitwise_{name}")(left, right)


@operator("Not", "BitwiseNot", samples=aligned)
def opposite(at: Call, value: Array) -> Array:
    """Bit by bit."""
    return at.xp.invert(value)


@operator("Where", samples=aligned)
def choose(at: Call, condition: Array, yes: Array, no: Array) -> Array:
    """Flows to what was chosen."""
    return at.xp.where(condition, *_alike(yes, no))


@operator("Clip", samples=aligned)
def clip(at: Call, value: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Zero at the bounds; a bound gets what it cut off."""
    if low is not None:
        value = at.xp.where(value <= low, low, value)
    if high is not None:
        value = at.xp.where(value >= high, high, value)
    return value


@operator("Identity", samples=aligned)
def identity(at: Call, value: Array) -> Array:
    """Of a tensor."""
    del at
    return value


@operator("Cast", samples=aligned)
def cast(at: Call, value: Array) -> Array:
    """Between types of numbers."""
    return convert(value, at.dtype(at.integer("to", 1)))


@operator("CastLike", samples=like_first)
def cast_like(at: Call, value: Array, like: Array) -> Array:
    """The second input is nothing but a type."""
    del at
    return convert(value, like.dtype)


def convert(value: Array, dtype: np.dtype[Any]) -> Array:
    """Return a value in another element type; what is not 0 is true."""
    if dtype == np.bool_:
        return value != 0
    if isinstance(value, np.ndarray):
        return value.astype(dtype)
    return lax.convert_element_type(value, dtype)


_IN_NUMPY_TOO = {
    "Abs": "abs",
    "Acos": "arccos",
    "Acosh": "arccosh",
    "Asin": "arcsin",
    "Asinh": "arcsinh",
    "Atan": "arctan",
    "Atanh": "arctanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "isnan",
    "Log": "log",
    "Neg": "negative",
    "Round": "round",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}


@operator(*_IN_NUMPY_TOO, samples=aligned)
def function(at: Call, value: Array) -> Array:
    """Of one variable; rounds half to even."""
    return getattr(at.xp, _IN_NUMPY_TOO[at.node.op_type])(value)


@operator("Reciprocal", samples=aligned)
def reciprocal(at: Call, value: Array) -> Array:
    """One divided by it."""
    del at
    return np.ones((), value.dtype) / value


@operator("Erf", samples=aligned)
def error_function(at: Call, value: Array) -> Array:
    """Of floating-point numbers."""
    del at
    return special.erf(value)


@operator("IsInf", samples=aligned)
def is_infinite(at: Call, value: Array) -> Array:
    """Of either sign, or of one."""
    found = at.xp.zeros(value.shape, bool)
    if at.integer("detect_positive", 1):
        found = found | (value == np.inf)
    if at.integer("detect_negative", 1):
        found = found | (value == -np.inf)
    return found


def _whole(value: Array) -> bool:
    return bool(np.issubdtype(value.dtype, np.integer))


def _alike(left: Array, right: Array) -> tuple[Array, Array]:
    """Return operands of one element type: the wider, where a program computes in bfloat16."""
    if left.dtype == right.dtype:
        return left, right
    wide = jnp.promote_types(left.dtype, right.dtype)
    return convert(left, wide), convert(right, wide)


@operator("AllReduce", domain="syncbn", samples=nowhere)
def all_reduce(at: Call, value: Array) -> Array:
    """The sum over replicas; its gradient passes unchanged."""
    return at.run.all_reduce(value, at.integer("group_size", 0))
