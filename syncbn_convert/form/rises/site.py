"""A node on its way to the next opset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form.rises import guesses
from syncbn_convert.graph import graphs
from syncbn_convert.graph.tape import Tape


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a rule works.

    Attributes:
        node: The node, in the words of opset `opset - 1`; a rule changes it in place.
        opset: Version that it rises to.
        names: Of the whole model.
        notes: What a user should know about it; rules add to them.
    """

    node: ir.Node
    opset: int
    names: graphs.Names
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def x(self) -> ir.Value:
        """The first input."""
        return self.input(0)

    def input(self, index: int) -> ir.Value:
        """Return an input that must be there."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            self.refuse(f"it lacks its input {index}")
        return value

    def pop(self, name: str) -> Any:
        """Take an attribute away and return its value; None where it has none."""
        attribute = self.node.attributes.pop(name, None)
        return None if attribute is None else attribute.value

    def add(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Put a node with one output before the node and return that output."""
        return self._before(lambda tape: tape.op(op_type, *inputs, **attributes))

    def constant(self, values: Any, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Put a Constant before the node and return its output."""
        return self._before(lambda tape: tape.constant(values, dtype))

    def _before(self, write: Callable[[Tape], ir.Value]) -> ir.Value:
        graph = self.node.graph
        assert graph is not None
        tape = Tape(partial(self.names.after_operator, scope=graphs.label(self.node)))
        value = write(tape)
        graph.insert_before(self.node, tape.nodes)
        return value

    def become(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the node another one of the same name, metadata and outputs."""
        node = self.node
        node.op_type = op_type
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        if attributes is not None:
            node.attributes.clear()
            for attribute in ir.convenience.convert_attributes(attributes):
                node.attributes.add(attribute)

    def set_input(self, index: int, value: ir.Value | None) -> None:
        """Set an input; those before it that are not there yet are left empty."""
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def rank(self, index: int) -> int:
        """Return the number of axes of an input; refuse where it is not known."""
        rank = guesses.rank_of(self.input(index))
        if rank is None:
            self.refuse(
                f"the shape of its input '{self.input(index).name}' is not known",
                "run ONNX's shape inference on the model first",
            )
        return rank

    def refuse(
        self, cause: str, cure: str = "export the model again with a newer opset"
    ) -> NoReturn:
        """Raise an error about the node."""
        raise ConversionError(
            f"node '{graphs.label(self.node)}' ({self.node.op_type}) cannot be raised from opset "
            f"{self.opset - 1} to {self.opset}: {cause}; {cure}"
        )
