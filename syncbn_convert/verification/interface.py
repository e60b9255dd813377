"""The interface of a model: what has to be fed, what comes out, what may be overridden."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx
import onnx_ir as ir

from syncbn_convert.errors import UsageError
from syncbn_convert.graph import graphs, map_types
from syncbn_convert.verification.likely_shapes import Dimension, likely_dimensions

_FIRST_IR_VERSION_WITH_OVERRIDABLE_INITIALIZERS = 4
_NAMES_SHOWN = 4
_BYTE = 8


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name and type of a graph input or output.

    Attributes:
        name: Name of the value.
        dtype: Element type; None where the value is no tensor or has no type.
        dimensions: Dimensions; None where the rank is unknown.
        whole: Whether it holds integers, or floats that the model turns into integers at once, as
            Keras' Embedding does.
        likely: Dimensions to try where the rank is unknown, by what reads the input.
        container: `sequence` or `optional` where type and dimensions are those of what is in it;
            `map` where they are those of its values.
        keys: Of a map.
    """

    name: str
    dtype: ir.DataType | None
    dimensions: tuple[Dimension, ...] | None
    whole: bool = False
    likely: tuple[Dimension, ...] | None = None
    container: str = ""
    keys: tuple[str | int, ...] = ()

    @property
    def type_name(self) -> str:
        """Element type as in `float32`, or `no tensor`."""
        kind = "no tensor" if self.dtype is None else str(self.dtype).lower()
        return f"{self.container} of {kind}" if self.container else kind

    def __str__(self) -> str:
        dims = "?" if self.dimensions is None else ",".join(str(d or "?") for d in self.dimensions)
        return f"'{self.name}' {self.type_name}[{dims}]"


@dataclasses.dataclass(frozen=True)
class Interface:
    """Interface of a model.

    Attributes:
        inputs: Inputs that must be fed, in order.
        outputs: Outputs, in order.
        overridable: Inputs that have an initializer for a default value.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    overridable: tuple[TensorSpec, ...]


def read_interface(model: ir.Model) -> Interface:
    """Return the interface of a model.

    Below IR version 4 every initializer is listed as an input and none can be overridden.
    """
    initialized = model.graph.initializers
    maps = map_types.of(model)
    may_override = model.ir_version >= _FIRST_IR_VERSION_WITH_OVERRIDABLE_INITIALIZERS
    return Interface(
        inputs=tuple(
            _map_spec(v, maps[v.name]) if v.name in maps else _spec(v)
            for v in model.graph.inputs
            if v.name not in initialized
        ),
        outputs=tuple(_spec(v) for v in model.graph.outputs),
        overridable=tuple(
            _spec(v) for v in model.graph.inputs if may_override and v.name in initialized
        ),
    )


def interface_difference(
    reference: Interface, candidate: Interface, outputs: Sequence[str] | None = None
) -> str | None:
    """Return how the interfaces differ, or None if they agree.

    Names, order and element types must agree. Static sizes must agree where both models have one,
    and an input size that is dynamic in the reference must not be static in the candidate.

    Args:
        reference: Interface that is asked for.
        candidate: Interface that is there.
        outputs: Names of the outputs that count; all if None.

    Raises:
        UsageError: The reference has no output of a name in `outputs`.
    """
    return _inputs_difference(reference, candidate) or _outputs_difference(
        reference, candidate, outputs
    )


def _spec(value: ir.Value) -> TensorSpec:
    container, dtype = _container(value.type), value.dtype
    dimensions = None if value.shape is None else tuple(_dimension(d) for d in value.shape)
    likely = likely_dimensions(value) if dimensions is None else None
    whole = _is_whole(value, dtype)
    return TensorSpec(value.name or "", dtype, dimensions, whole, likely, container)


def _map_spec(value: ir.Value, kind: onnx.TypeProto) -> TensorSpec:
    """Describe an input that takes a map from names or numbers to numbers."""
    name = value.name or ""
    if not kind.HasField("map_type"):
        return TensorSpec(name, None, None)
    of_texts = kind.map_type.key_type == onnx.TensorProto.STRING
    words = "string_vocabulary" if of_texts else "int64_vocabulary"
    keys: list[str | int] = []
    for reader in value.consumers():
        given = reader.attributes.get(words)
        keys += (given.as_strings() if of_texts else given.as_ints()) if given is not None else ()
    keys = list(dict.fromkeys(keys)) or ([] if of_texts else [0, 1, 2])
    dtype = ir.DataType(kind.map_type.value_type.tensor_type.elem_type)
    whole = dtype.is_integer()
    return TensorSpec(name, dtype, (), whole, container="map", keys=tuple(keys))


def _container(kind: ir.TypeProtocol | None) -> str:
    if isinstance(kind, ir.SequenceType):
        return "sequence"
    return "optional" if isinstance(kind, ir.OptionalType) else ""


def _is_whole(value: ir.Value, dtype: ir.DataType | None) -> bool:
    if dtype is not None and dtype.is_integer():
        return dtype.bitwidth >= _BYTE
    readers = value.consumers()
    return bool(readers) and all(map(_makes_integers, readers))


def _makes_integers(node: ir.Node) -> bool:
    to = node.attributes.get("to")
    return (
        node.op_type == "Cast"
        and node.domain in graphs.STANDARD_DOMAINS
        and to is not None
        and to.type == ir.AttributeType.INT
        and not to.is_ref()
        and ir.DataType(to.as_int()).is_integer()
    )


def _dimension(dimension: int | ir.SymbolicDim) -> Dimension:
    if isinstance(dimension, int):
        return dimension if dimension >= 0 else None
    name = dimension.value
    return name if isinstance(name, str) and name not in ("", "?", "-1") else None


def _inputs_difference(reference: Interface, candidate: Interface) -> str | None:
    wanted, found = _names(reference.inputs), _names(candidate.inputs)
    if wanted != found:
        return f"inputs: {_list_difference(wanted, found)}"
    for want, have in zip(reference.inputs, candidate.inputs, strict=True):
        if not _same_type(want, have) or _narrower(want, have):
            return f"input {want} of the reference is {have} in the candidate"
    return None


def _outputs_difference(
    reference: Interface, candidate: Interface, outputs: Sequence[str] | None
) -> str | None:
    wanted, found = _names(reference.outputs), _names(candidate.outputs)
    if outputs is None and wanted != found:
        return f"outputs: {_list_difference(wanted, found)}"
    candidates = {spec.name: spec for spec in candidate.outputs}
    references = {spec.name: spec for spec in reference.outputs}
    for name in wanted if outputs is None else outputs:
        if name not in references:
            raise UsageError(
                f"output '{name}': the reference has only {_some(wanted)}; name one of them"
            )
        if name not in candidates:
            return f"outputs: the candidate lacks '{name}'"
        if not _same_type(references[name], candidates[name]):
            return (
                f"output {references[name]} of the reference is {candidates[name]} in the candidate"
            )
    return None


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _list_difference(reference: list[str], candidate: list[str]) -> str:
    missing = [name for name in reference if name not in candidate]
    surplus = [name for name in candidate if name not in reference]
    parts = [f"the candidate lacks {_some(missing)}"] if missing else []
    parts += [f"the candidate has {_some(surplus)} besides"] if surplus else []
    return ", ".join(parts) or "the candidate has another order"


def _some(names: list[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names[:_NAMES_SHOWN])
    return quoted + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")


def _same_type(reference: TensorSpec, candidate: TensorSpec) -> bool:
    if (reference.dtype, reference.container) != (candidate.dtype, candidate.container):
        return False
    if reference.dimensions is None or candidate.dimensions is None:
        return True
    return len(reference.dimensions) == len(candidate.dimensions) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(reference.dimensions, candidate.dimensions, strict=True)
    )


def _narrower(reference: TensorSpec, candidate: TensorSpec) -> bool:
    if reference.dimensions is None or candidate.dimensions is None:
        return reference.dimensions is None and candidate.dimensions is not None
    return any(
        isinstance(b, int) and not isinstance(a, int)
        for a, b in zip(reference.dimensions, candidate.dimensions, strict=True)
    )
