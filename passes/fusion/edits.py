"""What a fusion changes around one node."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from syncbn_convert.passes.fusion.weights import Edit


@dataclasses.dataclass
class Fusion:
    """What changes around one node.

    Attributes:
        edits: New weights.
        attributes: New attributes, by node.
        added: An addend of the model's type that has to be added to a value, as it finds no place
            in a weight; None where there is none.
    """

    edits: list[Edit] = dataclasses.field(default_factory=list)
    attributes: list[tuple[ir.Node, ir.Attr]] = dataclasses.field(default_factory=list)
    added: tuple[ir.Value, ir.TensorProtocol] | None = None

    def set_beta(self, node: ir.Node) -> None:
        """Let a Gemm add its bias as it is."""
        if node.attributes.get_float("beta", 1.0) != 1.0:
            self.attributes.append((node, ir.AttrFloat32("beta", 1.0)))
