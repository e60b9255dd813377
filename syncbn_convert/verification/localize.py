"""Search for the first node whose value differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    off.

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
        for start in range(0, len(names), _VALUES_AT_A_TIME):
            found = _first_difference(
                probes, names[start : start + _VALUES_AT_A_TIME], run, tolerance
            )
            if found:
                name, error = found
                return f"{_describe(producers[name])}, output '{name}': {error}"
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


def _first_difference(
    probes: Sequence[Runner], names: Sequence[str], run: Run, tolerance: Tolerance
) -> tuple[str, str] | None:
    values, others = (probe.run(run.feed.arrays, names) for probe in probes)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    noise = perturbed_changes(probes[0], Run(run.feed, arrays))
    for name, value in arrays.items():
        difference = compare_values(value, others[name], tolerance.allowed(value, noise[name]))
        if not difference.equal:
            return name, difference.detail or f"{difference.relative:.1e} relative"
    return None


def _describe(node: onnx.NodeProto) -> str:
    name = node.name or f"{node.op_type}({next(n for n in node.output if n)})"
    return f"node '{name}' ({node.op_type})"
