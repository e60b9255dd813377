"""Which rule differentiates which operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from syncbn_convert.graph import graphs
from syncbn_convert.passes.gradients.gradient_tape import GradientTape

Gradients = Sequence[ir.Value | None]
Rule = Callable[[GradientTape, ir.Node, Gradients], Gradients]
"""Takes the tape, a node of the forward graph and the gradients of its outputs (None: nothing flows
into that output), and returns the gradients of its inputs (None: none flows, or none is wanted).

A gradient has the shape and dtype of its value. A rule may leave out what `tape.wants(node, index)`
says nobody wants. It refuses what it cannot differentiate with `tape.refuse(node, cause, cure)`.
"""

_rules: dict[tuple[str, str], Rule] = {}


def gradient(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of operators; a later one replaces it."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            _rules[domain, op_type] = rule
        return rule

    return register


def rule_for(node: ir.Node) -> Rule | None:
    """Return the rule of a node's operator, or None where there is none."""
    domain = "" if node.domain in graphs.STANDARD_DOMAINS else node.domain
    return _rules.get((domain, node.op_type))


def registered() -> Iterator[tuple[str, str, Rule]]:
    """Yield domain, operator and rule in alphabetical order."""
    for (domain, op_type), rule in sorted(_rules.items(), key=lambda item: item[0]):
        yield domain, op_type, rule
