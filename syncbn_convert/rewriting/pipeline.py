"""Running passes one after another."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence

import onnx_ir as ir

from syncbn_convert.errors import SyncBNError, printable_lines
from syncbn_convert.options.rewrites import PipelineOptions
from syncbn_convert.reports import Record
from syncbn_convert.rewriting.contract import RewritePass, RewriteResult


@dataclasses.dataclass
class PipelineResult:
    """What the passes did.

    Attributes:
        records: Records by name of the pass.
        notes: Notes of all passes, in order.
        timings: Seconds by name of the pass.
        modified: Whether any pass changed the model.
    """

    records: dict[str, list[Record]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    modified: bool = False


def run(
    model: ir.Model, passes: Sequence[RewritePass], options: PipelineOptions = PipelineOptions()
) -> PipelineResult:
    """Run `passes` over `model` in place and check the graph's invariants after each.

    Raises:
        SyncBNError: what a pass raised, unchanged.
        RuntimeError: if a pass broke an invariant; a bug in that pass.
    """
    result = PipelineResult()
    for rewrite in passes:
        start = time.perf_counter()
        outcome = _run_one(rewrite, model)
        result.timings[rewrite.name] = time.perf_counter() - start
        result.records[rewrite.name] = outcome.records
        result.notes = list(dict.fromkeys([*result.notes, *outcome.notes]))
        result.modified |= outcome.modified
        if outcome.modified and options.print_between_passes:
            _print(f"# after {rewrite.name}\n{model}")
    return result


def _print(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(printable_lines(text))
        sys.stderr.flush()


def _run_one(rewrite: RewritePass, model: ir.Model) -> RewriteResult:
    try:
        outcome = rewrite(model)
    except SyncBNError:
        raise
    except Exception as error:
        raise RuntimeError(f"pass {rewrite.name} failed") from error
    assert isinstance(outcome, RewriteResult)
    check_invariants(model, rewrite.name)
    return outcome


def check_invariants(model: ir.Model, after: str) -> None:
    """Check that names are unique, values are made before they are read, outputs are made.

    Raises:
        RuntimeError: naming the pass in `after` and the value.
    """
    seen: set[str] = set()
    available: set[int] = set()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if id(value) not in available:
            _claim(value, seen, after)
            available.add(id(value))
    for node in model.graph:
        for operand in node.inputs:
            if operand is not None and id(operand) not in available:
                raise RuntimeError(
                    f"pass {after}: node '{node.name}' reads '{operand.name}' before it is made"
                )
        for output in node.outputs:
            if output.name:
                _claim(output, seen, after)
            available.add(id(output))
    for output in model.graph.outputs:
        if id(output) not in available:
            raise RuntimeError(f"pass {after}: graph output '{output.name}' is made by nothing")


def _claim(value: ir.Value, seen: set[str], after: str) -> None:
    name = str(value.name)
    if name in seen:
        raise RuntimeError(f"pass {after}: the name '{name}' is used twice")
    seen.add(name)
