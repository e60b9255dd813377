"""Which function translates which operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx_ir as ir
from jax import dtypes, lax

from syncbn_convert.errors import ConversionError
from syncbn_convert.graph import graphs

if TYPE_CHECKING:
    from syncbn_convert.xla.sample_axes import Layout
    from syncbn_convert.xla.traced_run import Run

Array = Any
"""An array of NumPy where its value is known when the program is traced, else one of JAX."""
Kind = Literal["same", "narrow", "wide"]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Call:
    """One node where it is translated.

    Attributes:
        node: The node.
        opset: The standard opset that it is written in.
        attributes: Values of its attributes, those of the calling function filled in.
        inputs: Its inputs; None where one is left out.
        layouts: Where the samples lie in each input; None where there are none.
        sized: How much of each number of a known input there is for one sample: sizes that count
            samples are not what they are without padding. None where no number counts samples.
        number: Of the node in the program, for the random numbers that it draws.
        run: What the whole program is traced for.
        body: Evaluates a body of the node with these inputs, and returns its outputs.
    """

    node: ir.Node
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Any, ...]
    layouts: tuple[Layout | None, ...]
    sized: tuple[np.ndarray[Any, Any] | None, ...]
    number: int
    run: Run
    body: Callable[[str, Sequence[Array]], list[Array]]

    @property
    def label(self) -> str:
        """What messages call the node."""
        return f"node '{graphs.label(self.node)}' ({self.node.op_type})"

    def refuse(self, cause: str, cure: str) -> ConversionError:
        """Return the error for a node that has no translation as it is."""
        return ConversionError(f"{self.label}: {cause}; {cure}")

    def known(self, index: int) -> np.ndarray[Any, Any] | None:
        """Return an input whose value is known now, or None where it is left out.

        Raises:
            ConversionError: if it depends on data.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None or isinstance(value, np.ndarray):
            return value
        operand = self.node.inputs[index]
        raise self.refuse(
            f"its input '{operand.name if operand is not None else index}' depends on the data, "
            "and XLA has to know it beforehand",
            "run the model on ONNX Runtime (--engine threads)",
        )

    def known_ints(self, index: int, attribute: str | None = None) -> list[int] | None:
        """Return an input of integers that is known, or the attribute it once was."""
        value = self.known(index)
        if value is not None:
            return [int(number) for number in value.reshape(-1)]
        found = self.attributes.get(attribute) if attribute else None
        return None if found is None else [int(number) for number in found]

    def integer(self, name: str, default: int) -> int:
        """Return an attribute."""
        return int(self.attributes.get(name, default))

    def real(self, name: str, default: float) -> float:
        """Return a float attribute, as the float32 that it is."""
        return float(np.float32(self.attributes.get(name, default)))

    def text(self, name: str, default: str) -> str:
        """Return an attribute."""
        return str(self.attributes.get(name, default))

    def ints(self, name: str) -> list[int] | None:
        """Return an attribute, or None where it is left out."""
        found = self.attributes.get(name)
        return None if found is None else [int(number) for number in found]

    @property
    def xp(self) -> Any:
        """NumPy if all inputs are known, else `jax.numpy`."""
        given = (value for value in self.inputs if value is not None)
        return np if all(isinstance(value, np.ndarray) for value in given) else jnp

    def dtype(self, onnx_type: int) -> np.dtype[Any]:
        """Return the element type that an ONNX type has in this program."""
        kind = ir.DataType(onnx_type)
        if kind == ir.DataType.STRING:
            raise self.refuse("texts are no numbers", "take the node out of the model")
        wanted = kind.numpy()
        if wanted == np.float64 and not self.run.has_double:
            return FLOAT32
        return np.dtype(dtypes.canonicalize_dtype(wanted))

    @property
    def precision(self) -> Any:
        """What a product of matrices of this program is computed with."""
        return self.run.product_precision

    def mask(self, index: int) -> Array | None:
        """Return what is true for real samples, of a shape that broadcasts to an input.

        None where no sample of it is padding.
        """
        value, layout = self.inputs[index], self.layouts[index]
        if layout is None or self.run.weights is None or value is None:
            return None
        return layout.spread(self.run.weights, np.ndim(value)) > 0


Translation = Callable[..., Any]
Placing = Callable[[Call, Sequence[Array]], "Sequence[Layout | None]"]


@dataclasses.dataclass(frozen=True)
class Operator:
    """How an operator becomes a part of the program.

    Attributes:
        translate: Takes the call and the inputs, and returns the output or a tuple of outputs.
        kind: In bfloat16 mode: `narrow` computes in it, `wide` does not, `same` takes what comes.
        samples: Says where the samples lie in the outputs; None where only a program without
            padding is known to be right.
        known: Inputs whose values have to be known when the program is traced.
    """

    translate: Translation
    kind: Kind
    samples: Placing | None
    known: tuple[int, ...]


_operators: dict[tuple[str, str], Operator] = {}


def operator(
    *op_types: str,
    samples: Placing | None = None,
    kind: Kind = "same",
    known: tuple[int, ...] = (),
    domain: str = "",
) -> Callable[[Translation], Translation]:
    """Register the decorated function as the translation of operators."""

    def register(translate: Translation) -> Translation:
        for op_type in op_types:
            _operators[domain, op_type] = Operator(translate, kind, samples, known)
        return translate

    return register


def operator_of(node: ir.Node) -> Operator | None:
    """Return the translation of a node's operator, or None where there is none."""
    domain = "" if node.domain in graphs.STANDARD_DOMAINS else node.domain
    return _operators.get((domain, node.op_type))


def registered() -> Iterator[str]:
    """Yield the operators of the standard domain, in alphabetical order."""
    return iter(sorted(op_type for domain, op_type in _operators if not domain))


def in_element_types(operator: Operator, inputs: Sequence[Array | None], run: Run) -> list[Any]:
    """Return the inputs in the element types that the program's precision computes in."""
    if not run.narrow:
        return list(inputs)
    if operator.kind == "narrow":
        return [_as(value, FLOAT32, BFLOAT16) for value in inputs]
    if operator.kind == "wide":
        return [_as(value, BFLOAT16, FLOAT32) for value in inputs]
    if any(_is(value, BFLOAT16) for value in inputs):  # constants follow what is computed
        return [
            _as(value, FLOAT32, BFLOAT16) if isinstance(value, np.ndarray) else value
            for value in inputs
        ]
    return list(inputs)


def _is(value: Array | None, dtype: np.dtype[Any]) -> bool:
    return value is not None and value.dtype == dtype


def _as(value: Array | None, old: np.dtype[Any], new: np.dtype[Any]) -> Array | None:
    if value is None or value.dtype != old:
        return value
    return (
        value.astype(new) if isinstance(value, np.ndarray) else lax.convert_element_type(value, new)
    )
