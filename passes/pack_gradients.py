"""Gradients in a few flat buckets."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import buckets, provenance
from syncbn_convert.form.buckets import Bucket, Entry
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

PREFIX = "gradient.bucket"
_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackGradients(RewritePass):
    """Return gradients as a few vectors, `gradient.bucket.0` and so on, in place of one by one.

    A collective of one large buffer is quicker than many of small ones. Each vector holds
    gradients of one element type, flattened, one after the other; the model's metadata says where
    each of them is (`syncbn_convert.buckets`). A large gradient has a bucket alone, as to copy it
    into another would cost more than its own collective.

    ```
    before   a.grad, b.grad
    after    gradient.bucket.0 = Concat(Reshape(a.grad, [-1]), Reshape(b.grad, [-1]))
    ```

    Attributes:
        bucket_bytes: Largest size of a bucket of several gradients.
        alone_bytes: Size from which a gradient has a bucket alone.
    """

    bucket_bytes: int = 32 << 20
    alone_bytes: int = 2_000_000

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every parameter gets a record.

        Raises:
            ConversionError: if a gradient is neither float32 nor float64.
        """
        journal = Journal(logger)
        gradients = [
            value for value in model.graph.outputs if provenance.gradient_of(value) is not None
        ]
        for value in gradients:
            if value.dtype not in _DTYPES:
                raise ConversionError(
                    f"parameter '{provenance.gradient_of(value)}' has element type {value.dtype}, "
                    "in which small updates are lost; train a float32 model, or freeze it"
                )
        names = graphs.Names(model)
        packed = []
        for number, group in enumerate(self._groups(gradients)):
            packed.append(_pack(model, group, f"{PREFIX}.{number}", names))
            for entry in packed[-1].entries:
                journal.add(entry.name, "packed", packed[-1].name)
        graphs.remove_from(model.graph.outputs, gradients)
        if packed:
            buckets.put(model, packed)
        return journal.result(model, modified=bool(packed))

    def _groups(self, gradients: list[ir.Value]) -> list[list[ir.Value]]:
        alone: list[list[ir.Value]] = []
        shared: list[list[ir.Value]] = []
        for dtype in _DTYPES:
            room = 0.0
            for value in gradients:
                if value.dtype != dtype:
                    continue
                nbytes = _size(value) * dtype.itemsize
                if nbytes >= self.alone_bytes:
                    alone.append([value])
                    continue
                if nbytes > room:
                    shared.append([])
                    room = self.bucket_bytes
                shared[-1].append(value)
                room -= nbytes
        return [*shared, *alone]


def _size(value: ir.Value) -> int:
    return int(np.prod(_shape(value), dtype=np.int64))


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def _pack(model: ir.Model, group: list[ir.Value], wanted: str, names: graphs.Names) -> Bucket:
    dtype = group[0].dtype
    assert dtype is not None
    tape = Tape(lambda node: names.after_operator(node, wanted))
    flat = tape.ints(-1)
    pieces = [tape.op("Reshape", value, flat) for value in group]
    if len(pieces) > 1:
        tape.op("Concat", *pieces, axis=0)
    bucket = tape.nodes[-1].outputs[0]
    bucket.name = names.value(wanted)
    entries, offset = [], 0
    for value in group:
        entries.append(Entry(str(provenance.gradient_of(value)), offset, _shape(value)))
        offset += entries[-1].size
    bucket.type, bucket.shape = ir.TensorType(dtype), ir.Shape([offset])
    model.graph.extend(tape.nodes)
    model.graph.outputs.append(bucket)
    return Bucket(str(bucket.name), _DTYPES[dtype], tuple(entries))
