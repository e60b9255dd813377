"""The tensors of a model wherever they are, and putting the big ones elsewhere for a while."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

import onnx_ir as ir

_EXTERNAL_THRESHOLD = 1024
"""Bytes from which a tensor is big."""
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that read, compute and write big tensors; NumPy and files leave the interpreter free."""


class InsideTensor(ir.ExternalTensor):
    """A tensor that is inside its model's file, and stays there until it is used."""

    def __init__(self, path: str | os.PathLike[str], tensor: ir.ExternalTensor) -> None:
        super().__init__(
            os.path.abspath(path),
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    @property
    def nbytes(self) -> int:
        """Size in bytes, which dims and type were found to need when the file was read."""
        return super().nbytes if self.length is None else self.length


def is_outside(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is in a file of external data."""
    return isinstance(tensor, ir.ExternalTensor) and not isinstance(tensor, InsideTensor)


def _attribute_maps(model: ir.Model) -> Iterator[MutableMapping[str, ir.Attr]]:
    for node in model.graph.all_nodes():
        yield node.attributes
    for function in model.functions.values():
        yield function.attributes
        for node in function.all_nodes():
            yield node.attributes


def _attribute_tensors(attribute: ir.Attr) -> Sequence[ir.TensorProtocol]:
    if attribute.is_ref() or attribute.value is None:
        return ()
    if attribute.type == ir.AttributeType.TENSOR:
        return (attribute.as_tensor(),)
    if attribute.type == ir.AttributeType.TENSORS:
        return attribute.as_tensors()
    return ()


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    functions = model.functions.values()
    for graph in [*model.graphs(), *(body for f in functions for body in f.subgraphs())]:
        yield from graph.initializers.values()


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensors of all initializers and attributes, in subgraphs and functions too."""
    for value in _initializers(model):
        if value.const_value is not None:
            yield value.const_value
    for attributes in _attribute_maps(model):
        for attribute in attributes.values():
            yield from _attribute_tensors(attribute)


def replace_attribute_tensors(
    model: ir.Model, replacement: Callable[[ir.TensorProtocol], ir.TensorProtocol]
) -> None:
    """Let the tensors of all attributes be what `replacement` makes of them."""
    for attributes in _attribute_maps(model):
        for name, old in list(attributes.items()):
            tensors = [replacement(tensor) for tensor in _attribute_tensors(old)]
            if tensors:
                value = tensors if old.type == ir.AttributeType.TENSORS else tensors[0]
                attributes[name] = ir.Attr(name, old.type, value, doc_string=old.doc_string)


def find_external_data(model: ir.Model, folder: Path, *, inside: str | None = None) -> None:
    """Say where external data is: in a folder, or where links in it lead.

    Args:
        model: Whose data it is.
        folder: That folder.
        inside: Location of data that is in the model's own file, which is read by its path.
    """
    linked = False
    for tensor in tensors_of(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
            linked = linked or _is_link(tensor, inside)
    if not linked:
        return
    for value in _initializers(model):
        if value.const_value is not None:
            value.const_value = _at_the_end_of_links(value.const_value, inside)
    replace_attribute_tensors(model, lambda tensor: _at_the_end_of_links(tensor, inside))


def _is_link(tensor: ir.ExternalTensor, inside: str | None) -> bool:
    return os.fspath(tensor.location) != inside and os.path.islink(tensor.path)


def _at_the_end_of_links(tensor: ir.TensorProtocol, inside: str | None) -> ir.TensorProtocol:
    """Return external data as that of the file itself: onnx_ir follows no link out of a folder."""
    if not isinstance(tensor, ir.ExternalTensor) or not _is_link(tensor, inside):
        return tensor
    folder, name = os.path.split(os.path.realpath(tensor.path))
    return ir.ExternalTensor(
        name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=folder,
    )


def inline_bytes(tensors: Iterable[ir.TensorProtocol]) -> int:
    """Return how many bytes the tensors take."""
    return sum(map(_nbytes, tensors))


def _nbytes(tensor: ir.TensorProtocol) -> int:
    """Return `tensor.nbytes`, without the shape that a protobuf tensor makes anew each time."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        elements: int = math.prod(tensor.raw.dims)
        return math.ceil(elements * tensor.dtype.itemsize)
    return tensor.nbytes


def is_big(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is worth a place of its own."""
    return tensor.dtype != ir.DataType.STRING and _nbytes(tensor) >= _EXTERNAL_THRESHOLD


@contextlib.contextmanager
def big_tensors_stored(
    model: ir.Model,
    store: Callable[[Sequence[ir.TensorProtocol]], Sequence[ir.ExternalTensor]],
) -> Iterator[None]:
    """Let the big tensors be what `store` makes of them, and the others inside, for a while.

    That is several times quicker than to do it on a clone of a model of many nodes.
    """
    if not any(isinstance(t, ir.ExternalTensor) or is_big(t) for t in tensors_of(model)):
        yield
        return
    initializers = [(value, value.const_value) for value in _initializers(model)]
    attributes = [
        (attributes, attribute)
        for attributes in _attribute_maps(model)
        for attribute in attributes.values()
        if _attribute_tensors(attribute)
    ]
    try:
        _store_big_tensors(model, store)
        yield
    finally:
        for value, tensor in initializers:
            value.const_value = tensor
        for holder, attribute in attributes:
            holder[attribute.name] = attribute


def _store_big_tensors(
    model: ir.Model,
    store: Callable[[Sequence[ir.TensorProtocol]], Sequence[ir.ExternalTensor]],
) -> None:
    """Replace the big tensors by what `store` makes of them, and take the others inside."""
    big = {id(tensor): tensor for tensor in tensors_of(model) if is_big(tensor)}
    stored = dict(zip(big, store(list(big.values())), strict=True))
    for key, tensor in stored.items():
        tensor.doc_string = big[key].doc_string
        tensor.metadata_props.update(big[key].metadata_props)

    def replacement(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return stored[id(tensor)] if id(tensor) in stored else _in_memory(tensor)

    for value in _initializers(model):
        if value.const_value is not None:
            value.const_value = replacement(value.const_value)
    replace_attribute_tensors(model, replacement)


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    mapped = external_tensor(tensor, tensor.location, tensor.offset, tensor.base_dir)
    array = mapped.numpy().copy()
    mapped.release()
    return ir.Tensor(
        array,
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def external_tensor(
    tensor: ir.TensorProtocol,
    location: str | os.PathLike[str],
    offset: int | None = 0,
    base_dir: str | os.PathLike[str] = "",
) -> ir.ExternalTensor:
    """Return a tensor like `tensor`, whose data is said to be in a file."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=base_dir,
    )


@contextlib.contextmanager
def big_initializers_withheld(model: ir.Model) -> Iterator[dict[str, ir.TensorProtocol]]:
    """Let the big initializers of the main graph have no data for a while; yield them by name."""
    found = {
        value: tensor
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and is_big(tensor)
        and tensor.dtype.bitwidth % 8 == 0
    }
    empty = {value: external_tensor(tensor, "") for value, tensor in found.items()}
    for value, tensor in found.items():
        empty[value].doc_string = tensor.doc_string
        empty[value].metadata_props.update(tensor.metadata_props)
    with _replaced(empty):
        yield {str(value.name): tensor for value, tensor in found.items()}


@contextlib.contextmanager
def inside_tensors_loaded(model: ir.Model) -> Iterator[None]:
    """Let tensors that are still in the model's file be in memory for a while."""
    loaded = {
        value: _in_memory(tensor)
        for value in _initializers(model)
        if isinstance(tensor := value.const_value, InsideTensor)
    }
    with _replaced(loaded):
        yield


@contextlib.contextmanager
def _replaced(tensors: Mapping[ir.Value, ir.TensorProtocol]) -> Iterator[None]:
    before = {value: value.const_value for value in tensors}
    try:
        for value, tensor in tensors.items():
            value.const_value = tensor
        yield
    finally:
        for value, old in before.items():
            value.const_value = old
