"""Model-local functions that keep a normalization from the weights it could go into."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from syncbn_convert.form import batchnorm
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs
from syncbn_convert.graph.inlining import fits, inline
from syncbn_convert.passes.fusion.fuser import Fuser

Callee = ir.OperatorIdentifier


def helpful(model: ir.Model, met: Collection[Callee]) -> set[Callee]:
    """Return the functions that are to be inlined so that a normalization can be fused.

    Args:
        model: In which everything else was fused; not changed.
        met: What was called in the way of a fusion.

    Returns:
        Those that hold a normalization and those around it; none where that does not help.
    """
    wanted = _usable(model, graphs.functions_with(model, _holds) | set(met))
    while wanted:
        trial = graphs.clone(model)
        inline(trial, wanted)
        fuser = Fuser(trial)
        if any(outcome.action == "fused" for outcome in fuser.fuse_batchnorms()):
            return wanted
        more = wanted | _usable(model, fuser.callees)
        if more == wanted:
            return set()
        wanted = more
    return wanted


def listed(callees: Collection[Callee]) -> str:
    """Return the names of functions."""
    return ", ".join(sorted(f"{domain}::{name}" for domain, name, _ in callees))


def _holds(node: ir.Node, function: ir.Function) -> bool:
    if not batchnorm.is_batchnorm(node):
        return False
    return not BatchNorm(node, function.opset_imports.get("", 0)).training_mode


def _usable(model: ir.Model, callees: Collection[Callee]) -> set[Callee]:
    """Return those that are functions of the model, and mean the same in its opsets."""
    return {
        identifier
        for identifier, function in model.functions.items()
        if identifier in callees
        and function.domain != batchnorm.FORM_DOMAIN
        and fits(function, model)
    }
