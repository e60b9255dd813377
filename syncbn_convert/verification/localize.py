"""Search for the first node whose value differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx

from syncbn_convert.verification.differences import compare_values
from syncbn_convert.verification.model import ModelFile
from syncbn_convert.verification.noise import perturbed_changes
from syncbn_convert.verification.runners import OnnxEvaluator, OnnxRuntime, Runner, RunnerError
from syncbn_convert.verification.runs import Run
from syncbn_convert.verification.tolerance import Tolerance

_VALUES_AT_A_TIME = 64


def first_differing_node(
    reference: ModelFile, candidate: ModelFile, run: Run, tolerance: Tolerance, *, evaluator: bool
) -> str | None:
    """Return the first node of the reference's graph whose output differs, as text.

    Only values that have the same name in both main graphs are looked at; graph optimizations are
    off. A value that differs, while all that is made of it is equal again, is passed over: a layer
    was fused into the node that makes it.

    Args:
        reference: The reference.
        candidate: The candidate.
        run: A run in which the outputs differ.
        tolerance: Tolerance of the comparison.
        evaluator: Whether the models run on onnx's evaluator.

    Returns:
        Node, output and error, or None if no value that can be looked at differs.
    """
    protos = [onnx.load(m.path, load_external_data=evaluator) for m in (reference, candidate)]
    known = {name for node in protos[1].graph.node for name in node.output}
    producers = {
        name: node
        for node in protos[0].graph.node
        for name in node.output
        if name and name in known
    }
    names = list(producers)
    try:
        probes = [
            _probe(proto, names, model, evaluator=evaluator)
            for proto, model in zip(protos, (reference, candidate), strict=True)
        ]
        differing: dict[str, str] = {}
        for start in range(0, len(names), _VALUES_AT_A_TIME):
            part = names[start : start + _VALUES_AT_A_TIME]
            differing.update(_differences(probes, part, run, tolerance))
        for name in _lasting(differing, producers, protos[0], run.outputs):
            return f"{_describe(producers[name])}, output '{name}': {differing[name]}"
    except RunnerError:
        return None
    return None


def _probe(
    proto: onnx.ModelProto, names: Sequence[str], model: ModelFile, *, evaluator: bool
) -> Runner:
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in outputs)
    if evaluator:
        return OnnxEvaluator(proto)
    return OnnxRuntime(proto.SerializeToString(), optimize=False, folder=model.path.parent)


def _differences(
    probes: Sequence[Runner], names: Sequence[str], run: Run, tolerance: Tolerance
) -> dict[str, str]:
    """Return the values that differ, each with its error as text."""
    values, others = (probe.run(run.feed.arrays, names) for probe in probes)
    arrays = {name: values[name] for name in names if name in values and name in others}
    noise = perturbed_changes(probes[0], Run(run.feed, arrays))
    found = {}
    for name, value in arrays.items():
        difference = compare_values(value, others[name], tolerance.allowed(value, noise[name]))
        if not difference.equal:
            found[name] = difference.detail or f"{difference.relative:.1e} relative"
    return found


def _lasting(
    differing: Mapping[str, str],
    producers: Mapping[str, onnx.NodeProto],
    proto: onnx.ModelProto,
    results: Collection[str],
) -> list[str]:
    """Return the differing values that are not by design, in order; all if none is left."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reaches_a_difference(name: str) -> bool:
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            if current in results and current in differing:
                return True
            made = [out for node in readers.get(current, ()) for out in node.output]
            for value in (value for value in made if value not in seen):
                seen.add(value)
                if value in differing or value not in producers:
                    pending.append(value)
        return False

    return [name for name in differing if reaches_a_difference(name)] or list(differing)


def _describe(node: onnx.NodeProto) -> str:
    name = node.name or f"{node.op_type}({next(n for n in node.output if n)})"
    return f"node '{name}' ({node.op_type})"
