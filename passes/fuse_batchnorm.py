"""Inference-mode BatchNormalization, and affine maps like it, into the weights around it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable

import onnx_ir as ir

from syncbn_convert.form import batchnorm, opset
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.passes.fusion.affine import ChannelAffine, Refusal, of_batchnorm
from syncbn_convert.passes.fusion.consumers import fuse_into_reader
from syncbn_convert.passes.fusion.edits import Fusion
from syncbn_convert.passes.fusion.known_shapes import Shapes
from syncbn_convert.passes.fusion.paths import ELEMENTWISE, DeadEnds, Walker, Way
from syncbn_convert.passes.fusion.producers import PRODUCERS, Context, fuse_into
from syncbn_convert.passes.fusion.weights import WeightStore, remove_unused
from syncbn_convert.rewriting import Journal, RewritePass, RewriteResult

logger = logging.getLogger(__name__)

_BATCHNORM_ONLY = frozenset([batchnorm.OP_TYPE])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseBatchNorm(RewritePass):
    """Let every BatchNormalization in inference mode disappear into weights, where that is exact.

    1. Into what makes its input: Conv, ConvTranspose, Gemm, MatMul with a constant operand; through
       Identity, inference Dropout, Transpose, Squeeze, Unsqueeze, Reshape and Flatten that keep the
       channels, average pools, Concat of channels, and further affine maps per channel (Add, Sub,
       Mul, Div with constants, BatchNormalization), which are fused along.
    2. Else into a BatchNormalization before it; else into the Conv without padding, the Gemm or the
       MatMul that reads it, also through Flatten.
    3. Affine maps per channel that stand alone go the first way too.
    4. Weights are computed in float64 and rounded once to their own type. Weights that others read
       are copied.
    5. What would change the function is left alone: training mode, parameters and weights that a
       caller may feed or that are computed, values that are returned or read elsewhere too, results
       that overflow or underflow.

    ```
    before   t = Conv(x, w)  y = BatchNormalization(t, s, b, m, v)
    after    y = Conv(x, w * s / sqrt(v + epsilon), b - m * s / sqrt(v + epsilon))
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place.

        Every BatchNormalization gets a record, and every affine map that was fused.
        """
        journal = Journal(logger)
        found = list(batchnorm.find(model))
        raised = opset.raise_ir_version(model, FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS)
        fuser = _Fuser(model)
        outcomes: dict[int, tuple[str, str]] = {}
        labels = {id(norm.node): graphs.label(norm.node) for norm, _ in found}
        for norm, _ in reversed(found):
            outcomes[id(norm.node)] = fuser.fuse_batchnorm(norm)
        fused = fuser.fuse_elementwise()
        for norm, location in found:
            action, reason = outcomes[id(norm.node)]
            journal.add(labels[id(norm.node)], action, reason, location=location)
        for name, operator, reason in fused:
            journal.add(name, "fused", reason, operator=operator)
        return journal.result(model, modified=raised or fuser.modified)


class _Fuser:
    def __init__(self, model: ir.Model) -> None:
        self.modified = False
        self._model = model
        self._shapes = Shapes(model)
        self._store = WeightStore(model)
        self._absorbed: dict[int, str] = {}
        self._dead_ends: dict[frozenset[str], DeadEnds] = {}

    def fuse_batchnorm(self, norm: BatchNorm) -> tuple[str, str]:
        """Fuse a node; return `fused` and where it went, or `kept` and why."""
        if id(norm.node) in self._absorbed:
            return "fused", self._absorbed[id(norm.node)]
        try:
            affine = of_batchnorm(norm, self._model)
        except Refusal as refusal:
            return "kept", str(refusal)
        reasons: list[str] = []
        for ends in (PRODUCERS, _BATCHNORM_ONLY):
            try:
                self._into_producer(norm.node, norm.x, 1, affine, norm.opset, ends)
                return "fused", self._absorbed[id(norm.node)]
            except Refusal as refusal:
                reasons.append(str(refusal))
        try:
            context = Context(self._model, self._shapes, norm.opset)
            fusion = fuse_into_reader(norm.node.outputs[0], affine, context)
            assert norm.x is not None
            self._commit([fusion], [(norm.node, norm.x)])
            return "fused", self._absorbed[id(norm.node)]
        except Refusal as refusal:
            return "kept", "; ".join(filter(None, (reasons[0], str(refusal))))

    def fuse_elementwise(self) -> list[tuple[str, str, str]]:
        """Fuse affine maps per channel that no BatchNormalization follows.

        Returns:
            Name and operator of each, and where it went, in graph order.
        """
        version = graphs.opset_version(self._model)
        fused: list[tuple[str, str, str]] = []
        for node in reversed(list(self._model.graph)):
            if node.op_type not in ELEMENTWISE or node.domain not in graphs.STANDARD_DOMAINS:
                continue
            if node.graph is None:
                continue
            name = graphs.label(node)
            if self._fuse_elementwise(node, version):
                fused.append((name, node.op_type, self._absorbed[id(node)]))
        return fused[::-1]

    def _fuse_elementwise(self, node: ir.Node, version: int) -> bool:
        walker = self._walker(version, PRODUCERS)
        for axis in self._possible_axes(node):
            try:
                x, _, affine = walker.affine_of(node, axis)
            except Refusal:
                continue
            for ends in (PRODUCERS, _BATCHNORM_ONLY):
                with contextlib.suppress(Refusal):
                    self._into_producer(node, x, axis, affine, version, ends)
                    return True
        return False

    def _possible_axes(self, node: ir.Node) -> Iterable[int]:
        try:
            rank = self._shapes.rank(node.outputs[0])
        except Refusal:
            return ()
        return [1, *(axis for axis in (rank - 1, rank - 2) if axis > 1)] if rank > 1 else ()

    def _walker(self, version: int, ends: frozenset[str]) -> Walker:
        dead_ends = self._dead_ends.setdefault(ends, {})
        return Walker(self._model, self._shapes, version, ends, dead_ends)

    def _into_producer(
        self,
        target: ir.Node,
        x: ir.Value | None,
        axis: int,
        affine: ChannelAffine,
        version: int,
        ends: frozenset[str],
    ) -> None:
        walker = self._walker(version, ends)
        way = walker.walk(x, axis, affine)
        _require_progress(way, target)
        context = Context(self._model, self._shapes, version)
        fusions = [fuse_into(leaf, context) for leaf in way.leaves]
        assert x is not None
        self._commit(fusions, [(target, x), *way.absorbed])

    def _commit(self, fusions: list[Fusion], removed: list[tuple[ir.Node, ir.Value]]) -> None:
        self.modified = True
        self._dead_ends.clear()
        homes = dict.fromkeys(
            graphs.label(edit.node) for fusion in fusions for edit in fusion.edits
        )
        for node, x in removed:
            self._absorbed[id(node)] = f"into {', '.join(homes)}"
            _bypass(node, x)
        for fusion in fusions:
            for edit in fusion.edits:
                self._store.apply(edit)
            for node, attribute in fusion.attributes:
                old = node.attributes.get(attribute.name)
                if old is None or old.value != attribute.value:
                    node.attributes.add(attribute)
            if fusion.added is not None:
                self._add_after(*fusion.added)

    def _add_after(self, value: ir.Value, addend: ir.TensorProtocol) -> None:
        node = value.producer()
        assert node is not None
        assert node.graph is not None
        constant = self._store.constant(node, addend, f"{graphs.label(node)}/addend")
        total = ir.node("Add", [value, constant], name=f"{graphs.label(node)}/add")
        output = total.outputs[0]
        output.type, output.shape = value.type, value.shape
        name = str(value.name)
        value.replace_all_uses_with(output, replace_graph_outputs=True)
        total.replace_input_with(0, value)
        value.name, output.name = graphs.unique_name(f"{name}/sum", self._store.taken), name
        node.graph.insert_after(node, total)


def _require_progress(way: Way, target: ir.Node) -> None:
    """Refuse to turn MatMul and Add into MatMul and Add."""
    if target.op_type not in ELEMENTWISE:
        return
    if any(leaf.node.op_type == "MatMul" and not leaf.affine.scales for leaf in way.leaves):
        raise Refusal("there is nothing to gain")


def _bypass(node: ir.Node, x: ir.Value) -> None:
    """Let the readers of a node read its input `x`; a graph output keeps its name."""
    y, graph = node.outputs[0], node.graph
    assert graph is not None
    others = [value for value in node.inputs if value is not None and value is not x]
    if y.is_graph_output():
        x.name, y.name = y.name, f"{y.name}/fused_away"
        x.type, x.shape = y.type or x.type, y.shape if y.shape is not None else x.shape
    y.replace_all_uses_with(x, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for value in others:
        remove_unused(value)
