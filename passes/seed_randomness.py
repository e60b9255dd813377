"""Random numbers of a graph that follow from one key that is fed."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import provenance
from syncbn_convert.graph import constants, graphs, random_nodes
from syncbn_convert.graph.tape import SharingTape
from syncbn_convert.graph.value_types import inferred_types
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

KEY = "random_key"
_INT64, _UINT64 = ir.DataType.INT64, ir.DataType.UINT64
_FLOAT, _BOOL = ir.DataType.FLOAT, ir.DataType.BOOL
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SALT = 0xD1B54A32D192ED03
_BITS = 24
"""Of a float32's fraction; what is drawn is a multiple of 2**-24."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedRandomness(RewritePass):
    """Compute what nodes draw at random from a key, a graph input.

    1. The generators of ONNX Runtime go on from run to run, and sessions share them. Numbers that
       follow from a key are the same wherever and whenever a step is run again.
    2. Element i of node k is SplitMix64 (Steele, Lea, Flood, 2014) of key, k and i; its upper 24
       bits are a uniform number, two of them a normal one by Box and Muller.
    3. It is done for Dropout in training mode, RandomUniform, RandomNormal, their `Like`s and
       Bernoulli in the main graph. What draws elsewhere, or otherwise, is left alone.

    ```
    before   y, mask = Dropout(x, ratio, true)
    after    mask = GreaterOrEqual(uniform(key), ratio)  y = Where(mask, x / (1 - ratio), 0)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that is seeded gets a record."""
        journal = Journal(logger)
        found = [node for node in list(model.graph) if random_nodes.draws(node, None, model)]
        found = [node for node in found if _can_be_seeded(node, model)]
        if not found:
            return journal.result(model, modified=False)
        types = inferred_types(model, [node.inputs[0] for node in found if node.inputs])
        names = graphs.Names(model)
        key = ir.Value(name=names.value(KEY), type=ir.TensorType(_INT64), shape=ir.Shape([]))
        for number, node in enumerate(found, start=1):
            _Writer(node, names, key, number, types).write()
            journal.add(graphs.label(node), "seeded", node.op_type)
        model.graph.inputs.append(key)
        provenance.mark_random_key(model, str(key.name))
        return journal.result(model, modified=True)


def _can_be_seeded(node: ir.Node, model: ir.Model) -> bool:
    if node.domain not in graphs.STANDARD_DOMAINS or node.op_type == "Multinomial":
        return False
    if node.op_type != "Dropout":
        return True
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    return mode is not None and constants.constant_tensor(mode, model) is not None


class _Writer:
    """Writes what one node draws."""

    def __init__(
        self,
        node: ir.Node,
        names: graphs.Names,
        key: ir.Value,
        number: int,
        types: dict[ir.Value, ir.DataType],
    ) -> None:
        self._node = node
        self._names = names
        self._key = key
        self._number = number
        self._tape = SharingTape(lambda made: names.after_operator(made, graphs.label(node)))
        self._types = types

    def write(self) -> None:
        """Put new nodes in place of the node."""
        node = self._node
        results = self._dropout() if node.op_type == "Dropout" else [self._drawn()]
        assert node.graph is not None
        graph = node.graph
        graph.insert_before(node, self._tape.nodes)
        given = list(node.outputs[: len(results)])
        kept = [str(output.name) for output in given]
        for old, new in zip(given, results, strict=True):
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        for new, name in zip(results, kept, strict=True):
            new.name = name or new.name

    def _dropout(self) -> list[ir.Value]:
        tape, node = self._tape, self._node
        x = node.inputs[0]
        assert x is not None
        dtype = self._dtype_of(x)
        ratio = node.inputs[1] if node.inputs[1] is not None else tape.constant(0.5, _FLOAT)
        share = tape.op("Cast", ratio, to=int(_FLOAT))
        mask = tape.op("GreaterOrEqual", self._uniform(tape.op("Shape", x)), share)
        left = tape.op("Sub", tape.constant(1.0, dtype), tape.op("Cast", share, to=int(dtype)))
        kept = tape.op("Div", x, left)
        y = tape.op("Where", mask, kept, tape.constant(0.0, dtype))
        return [y, mask][: len(node.outputs)]

    def _drawn(self) -> ir.Value:
        tape, node = self._tape, self._node
        operator = node.op_type
        source = node.inputs[0] if node.inputs else None
        if source is None:
            shape = tape.ints(*node.attributes["shape"].as_ints())
        else:
            shape = tape.op("Shape", source)
        if operator == "Bernoulli":
            assert source is not None
            drawn = tape.op("Less", self._uniform(shape), tape.op("Cast", source, to=int(_FLOAT)))
        elif "Uniform" in operator:
            low, high = (node.attributes.get_float(n, d) for n, d in (("low", 0.0), ("high", 1.0)))
            drawn = self._scaled(self._uniform(shape), high - low, low)
        else:
            mean, scale = (
                node.attributes.get_float(n, d) for n, d in (("mean", 0.0), ("scale", 1.0))
            )
            drawn = self._scaled(self._normal(shape), scale, mean)
        dtype = node.attributes.get_int("dtype", None)
        if dtype is None:
            dtype = int(_FLOAT if source is None else self._dtype_of(source))
        return tape.op("Cast", drawn, to=dtype)

    def _dtype_of(self, value: ir.Value) -> ir.DataType:
        return value.dtype or self._types.get(value) or _FLOAT

    def _scaled(self, value: ir.Value, factor: float, offset: float) -> ir.Value:
        tape = self._tape
        product = tape.op("Mul", value, tape.constant(factor, _FLOAT))
        return tape.op("Add", product, tape.constant(offset, _FLOAT))

    def _normal(self, shape: ir.Value) -> ir.Value:
        tape = self._tape
        above_0 = tape.op("Sub", tape.constant(1.0, _FLOAT), self._uniform(shape))
        square = tape.op("Mul", tape.op("Log", above_0), tape.constant(-2.0, _FLOAT))
        angle = tape.op("Mul", self._uniform(shape, 1), tape.constant(2.0 * math.pi, _FLOAT))
        return tape.op("Mul", tape.op("Sqrt", square), tape.op("Cos", angle))

    def _uniform(self, shape: ir.Value, stream: int = 0) -> ir.Value:
        """Return float32 numbers in [0, 1) of a shape."""
        tape = self._tape
        zero, one = tape.constant(0, _INT64), tape.constant(1, _INT64)
        places = tape.op("Range", zero, tape.op("ReduceProd", shape, keepdims=0), one)
        salt = _signed((2 * self._number + stream) * _SALT)
        start = tape.op("Add", self._key, tape.constant(salt, _INT64))
        z = tape.op("Add", tape.op("Mul", places, tape.constant(_signed(_GOLDEN), _INT64)), start)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            wide = tape.op("Cast", self._mixed(z, shift), to=int(_INT64))
            z = tape.op("Mul", wide, tape.constant(_signed(factor), _INT64))
        bits = self._shifted(self._mixed(z, 31), 64 - _BITS)
        numbers = tape.op("Cast", tape.op("Cast", bits, to=int(_INT64)), to=int(_FLOAT))
        scaled = tape.op("Mul", numbers, tape.constant(2.0**-_BITS, _FLOAT))
        return tape.op("Reshape", scaled, shape)

    def _mixed(self, value: ir.Value, shift: int) -> ir.Value:
        """Return `z ^ (z >> shift)`, uint64, of an int64."""
        unsigned = self._tape.op("Cast", value, to=int(_UINT64))
        return self._tape.op("BitwiseXor", unsigned, self._shifted(unsigned, shift))

    def _shifted(self, value: ir.Value, shift: int) -> ir.Value:
        amount = self._tape.constant(np.array(shift, np.uint64), _UINT64)
        return self._tape.op("BitShift", value, amount, direction="RIGHT")


def _signed(number: int) -> int:
    """Return the int64 of the same 64 bits."""
    return int(np.uint64(number % 2**64).astype(np.int64))
