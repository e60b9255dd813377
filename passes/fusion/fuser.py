"""What fuses the normalizations and affine maps of one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from syncbn_convert.form import batchnorm, opset
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs, module_names
from syncbn_convert.graph.constants import FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS
from syncbn_convert.passes.fusion import handover
from syncbn_convert.passes.fusion.affine import (
    CallRefusal,
    ChannelAffine,
    Refusal,
    of_batchnorm,
)
from syncbn_convert.passes.fusion.consumers import fuse_into_reader, reader_of
from syncbn_convert.passes.fusion.edits import Fusion
from syncbn_convert.passes.fusion.known_shapes import Shapes
from syncbn_convert.passes.fusion.paths import ELEMENTWISE, DeadEnds, Walker, Way
from syncbn_convert.passes.fusion.producers import PRODUCERS, Context, fuse_into
from syncbn_convert.passes.fusion.weights import WeightStore

_BATCHNORM_ONLY = frozenset([batchnorm.OP_TYPE])
Removal = tuple[ir.Node, ir.Value]
"""A node that goes, and the input that is read instead of it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a node.

    Attributes:
        name: Its name.
        action: `fused` or `kept`.
        reason: Where it went, or why it stayed.
        location: Where it is.
        operator: What it is, if it is no BatchNormalization.
        module: Path of its module, if that is known.
    """

    name: str
    action: str
    reason: str
    location: str = ""
    operator: str = ""
    module: str = ""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a fusion changes: weights, nodes that go, values that then hold other numbers."""

    fusions: Sequence[Fusion]
    removed: Sequence[Removal]
    changed: Sequence[ir.Value]
    into_reader: bool


class Fuser:
    """Fuses what it can.

    Args:
        model: Changed in place; its IR version is raised with the first fusion.

    Attributes:
        modified: Whether anything was fused.
        callees: Functions that were called, or custom operators, where a fusion might have been.
    """

    def __init__(self, model: ir.Model) -> None:
        self.modified = False
        self.callees: set[ir.OperatorIdentifier] = set()
        self._model = model
        self._shapes = Shapes(model)
        self._store = WeightStore(model)
        self._absorbed: dict[int, str] = {}
        self._dead_ends: dict[frozenset[str], DeadEnds] = {}

    def fuse(self) -> list[Outcome]:
        """Fuse every BatchNormalization, and affine maps that none follows."""
        own = list(self._model.graph)
        outcomes = self.fuse_batchnorms() + self._fuse_elementwise(own)
        if self.modified:
            handover.remove_unread(self._model)
        return outcomes

    def fuse_batchnorms(self) -> list[Outcome]:
        """Fuse every BatchNormalization, the last first; return what became of them, in order."""
        found = list(batchnorm.find(self._model))
        names = [(graphs.label(norm.node), module_names.module_of(norm.node)) for norm, _ in found]
        outcomes = [self._fuse_batchnorm(norm) for norm, _ in reversed(found)]
        return [
            Outcome(name, action, reason, location, module=module)
            for (name, module), (action, reason), (_, location) in zip(
                names, reversed(outcomes), found, strict=True
            )
        ]

    def _fuse_batchnorm(self, norm: BatchNorm) -> tuple[str, str]:
        """Return `fused` and where it went, or `kept` and why."""
        node = norm.node
        if id(node) in self._absorbed:
            return "fused", self._absorbed[id(node)]
        try:
            affine = of_batchnorm(norm, self._model)
        except Refusal as refusal:
            return "kept", str(refusal)

        def into_reader() -> _Plan:
            assert norm.x is not None
            return self._into_reader(node, [(node, norm.x)], affine, norm.opset)

        refused = self._commit_first(
            lambda: self._into_producer(node, norm.x, 1, affine, norm.opset, PRODUCERS),
            lambda: self._into_producer(node, norm.x, 1, affine, norm.opset, _BATCHNORM_ONLY),
            into_reader,
        )
        if not refused:
            return "fused", self._absorbed[id(node)]
        return "kept", "; ".join(filter(None, (refused[0], refused[-1])))

    def _fuse_elementwise(self, own: Sequence[ir.Node]) -> list[Outcome]:
        """Fuse affine maps per channel until none goes; return those of `own` that did."""
        version = graphs.opset_version(self._model)
        fused: dict[ir.Node, Outcome] = {}
        while found := self._fuse_elementwise_once(version):
            fused |= found
        return [fused[node] for node in own if node in fused]

    def _fuse_elementwise_once(self, version: int) -> dict[ir.Node, Outcome]:
        """Fuse affine maps, the last first; return what became of those that went."""
        fused: dict[ir.Node, Outcome] = {}
        for node in reversed(list(self._model.graph)):
            if node.graph is None or not _is_elementwise(node):
                continue
            name, module = graphs.label(node), module_names.module_of(node)
            if self._fuse_one_elementwise(node, version):
                reason = self._absorbed[id(node)]
                fused[node] = Outcome(name, "fused", reason, operator=node.op_type, module=module)
        return fused

    def _fuse_one_elementwise(self, node: ir.Node, version: int) -> bool:
        walker = self._walker(version, PRODUCERS)
        for axis in self._possible_axes(node):
            try:
                x, _, affine = walker.affine_of(node, axis)
            except Refusal:
                continue
            plans = (
                lambda ends=ends, x=x, axis=axis, affine=affine: self._into_producer(
                    node, x, axis, affine, version, ends
                )
                for ends in (PRODUCERS, _BATCHNORM_ONLY)
            )
            if not self._commit_first(*plans):
                return True
        return self._fuse_run(node, version)

    def _fuse_run(self, last: ir.Node, version: int) -> bool:
        """Fuse affine maps, one behind the other, into what reads `last`: as many as can be."""
        try:
            reader_of(last.outputs[0], self._context(version))
        except Refusal as refusal:
            self._note(refusal)
            return False
        run = self._run_before(last, version)

        def plan(length: int) -> Callable[[], _Plan]:
            affine = run[length - 1][2]
            removed = [(node, x) for node, x, _ in run[:length]]
            return lambda: self._into_reader(last, removed, affine, version)

        plans = [plan(length) for length in range(len(run), 0, -1)]
        return bool(plans) and not self._commit_first(*plans)

    def _run_before(
        self, last: ir.Node, version: int
    ) -> list[tuple[ir.Node, ir.Value, ChannelAffine]]:
        """Return affine maps back from `last`, each with its input and what all since are."""
        walker = self._walker(version, PRODUCERS)
        found: list[tuple[ir.Node, ir.Value, ChannelAffine]] = []
        node: ir.Node | None = last
        while node is not None and _is_elementwise(node) and node.graph is last.graph:
            try:
                x, _, affine = walker.affine_of(node, 1)
                self._require_channels(x, affine)
            except Refusal:
                break
            found.append((node, x, found[-1][2].after(affine) if found else affine))
            if x.is_graph_output() or len(graphs.readers(x)) != 1:
                break
            node = x.producer()
        return found

    def _require_channels(self, x: ir.Value, affine: ChannelAffine) -> None:
        """Refuse a map that makes more channels than there are."""
        if affine.multiplier.size != 1 and self._shapes.of(x)[1] != affine.multiplier.size:
            raise Refusal(f"'{x.name}' may be broadcast")

    def _possible_axes(self, node: ir.Node) -> Iterable[int]:
        try:
            rank = self._shapes.rank(node.outputs[0])
        except Refusal:
            return ()
        return [1, *(axis for axis in (rank - 1, rank - 2) if axis > 1)] if rank > 1 else ()

    def _walker(self, version: int, ends: frozenset[str]) -> Walker:
        dead_ends = self._dead_ends.setdefault(ends, {})
        return Walker(self._model, self._shapes, version, ends, dead_ends)

    def _context(self, version: int) -> Context:
        return Context(self._model, self._shapes, version)

    def _into_producer(
        self,
        target: ir.Node,
        x: ir.Value | None,
        axis: int,
        affine: ChannelAffine,
        version: int,
        ends: frozenset[str],
    ) -> _Plan:
        way = self._walker(version, ends).walk(x, axis, affine)
        _require_progress(way, target)
        fusions = [fuse_into(leaf, self._context(version)) for leaf in way.leaves]
        assert x is not None
        return _Plan(fusions, [(target, x), *way.absorbed], way.passed, into_reader=False)

    def _into_reader(
        self, last: ir.Node, removed: Sequence[Removal], affine: ChannelAffine, version: int
    ) -> _Plan:
        fusion, way = fuse_into_reader(last.outputs[0], affine, self._context(version))
        if fusion.added is not None and len(removed) == 1 and _is_elementwise(last):
            raise Refusal("there is nothing to gain")
        return _Plan([fusion], [*way.absorbed, *removed], way.passed, into_reader=True)

    def _commit_first(self, *plans: Callable[[], _Plan]) -> list[str]:
        """Carry out the first plan that is not refused; return the refusals where all are."""
        refusals: list[str] = []
        for make in plans:
            try:
                plan = make()
            except Refusal as refusal:
                self._note(refusal)
                refusals.append(str(refusal))
                continue
            self._commit(plan)
            return []
        return refusals

    def _note(self, refusal: Refusal) -> None:
        if isinstance(refusal, CallRefusal):
            self.callees.add(refusal.callee)

    def _commit(self, plan: _Plan) -> None:
        if not self.modified:
            opset.raise_ir_version(self._model, FIRST_IR_WITH_OVERRIDABLE_INITIALIZERS)
        self.modified = True
        self._dead_ends.clear()
        homes = {id(edit.node): edit.node for f in plan.fusions for edit in f.edits}
        names = dict.fromkeys(module_names.names_of(node)[-1] for node in homes.values())
        result = None if plan.into_reader else plan.removed[0][0].outputs[0].name
        for node, x in plan.removed:
            self._absorbed[id(node)] = f"into {', '.join(names)}"
            handover.bypass(node, x, is_result=not plan.into_reader)
            for home in homes.values():
                handover.keep_notes(node, home)
        handover.rename_changed(
            (value for value in plan.changed if value.name != result), self._store.names
        )
        for fusion in plan.fusions:
            self._apply(fusion)

    def _apply(self, fusion: Fusion) -> None:
        for edit in sorted(fusion.edits, key=lambda edit: -edit.index):
            self._store.apply(edit)  # what computes a bias may read the shape of the weight
        for node, attribute in fusion.attributes:
            old = node.attributes.get(attribute.name)
            if old is None or old.value != attribute.value:
                node.attributes.add(attribute)
        if fusion.added is not None:
            self._add_after(*fusion.added)

    def _add_after(self, value: ir.Value, addend: ir.TensorProtocol) -> None:
        node, names = value.producer(), self._store.names
        assert node is not None
        assert node.graph is not None
        label = graphs.label(node)
        constant = self._store.constant(node, addend, f"{label}/addend")
        old = graphs.opset_version_of(node, self._model) < graphs.FIRST_OPSET_OF_NUMPY_BROADCASTING
        attributes = {"broadcast": 1} if old else {}
        total = ir.node("Add", [value, constant], attributes, name=names.node(f"{label}/add"))
        handover.take_place(total.outputs[0], value)
        self._shapes.copy(value, total.outputs[0])
        total.replace_input_with(0, value)
        handover.rename_changed([value], names, "sum")
        node.graph.insert_after(node, total)


def _is_elementwise(node: ir.Node) -> bool:
    return node.op_type in ELEMENTWISE and node.domain in graphs.STANDARD_DOMAINS


def _require_progress(way: Way, target: ir.Node) -> None:
    """Refuse to turn MatMul and Add into MatMul and Add."""
    if target.op_type not in ELEMENTWISE or any(_is_elementwise(n) for n, _ in way.absorbed):
        return
    if any(leaf.node.op_type == "MatMul" and not leaf.affine.scales for leaf in way.leaves):
        raise Refusal("there is nothing to gain")
