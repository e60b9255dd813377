"""Normalization in elementwise operators to BatchNormalization."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial

import onnx_ir as ir

from syncbn_convert.form import batchnorm, opset, training_form
from syncbn_convert.graph import graphs, inlining
from syncbn_convert.passes.recognition import proof
from syncbn_convert.passes.recognition.matching import Finder, Match
from syncbn_convert.passes.recognition.parameters import constant_values
from syncbn_convert.passes.recognition.replacing import Replacer, layer_name
from syncbn_convert.rewriting import Journal, RewriteResult, matches
from syncbn_convert.rewriting.selection import SelectingPass

logger = logging.getLogger(__name__)

_KERAS_MOMENTUM = 0.99
_ANCHORS = frozenset(["ReduceMean", "Sqrt", "Pow"])
"""One of them is in every normalization whose variance is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecognizeBatchNorm(SelectingPass):
    """Turn normalization that an exporter took apart into BatchNormalization again.

    1. Training forms: mean and variance of the batch by ReduceMean over all axes but one, then
       (X - mean) / sqrt(variance + epsilon) * scale + bias, in whatever order and layout. The
       result is a BatchNormalization in training mode. Moving statistics, which such exports leave
       out, become initializers 0 and 1, named after the scope of the nodes: calibrate or train
       before folding. Momentum is 0.99, Keras' default, in models of tf2onnx. Folding the converted
       model gives BatchNormalization, not the operators that it was.
    2. Inference forms: the same with constant mean and variance, of which one sum `variance +
       epsilon` below a root is left.
    3. With `affine` also X * scale + bias per channel, behind weights that make these channels.
       That is what is left where an exporter computed with the statistics: mean 0 and variance 1
       stand for them, so the function stays, but what is trained begins without them.
    4. Each match is computed in float64 on random data and compared with the normalization first.
    5. Left alone: other axes (layer, instance and group normalization), an axis that is not that
       of the channels of the weights before, a value inside that something else reads, and bodies
       of If, Loop and Scan; what is not selected; training forms that are to be frozen, as the
       statistics that they would need are not in the model. Model-local functions that hold a
       match are inlined.
    6. Where channels are last, BatchNormalization stands between Transposes, which are moved
       behind activations and sums and cancelled.

    ```
    before   t = Sub(x, m)  d = Sqrt(Add(v, 0.001))  y = Add(Mul(Div(t, d), s), b)
    after    y = BatchNormalization <epsilon = 0.001> (x, s, b, m, v)
    ```

    Attributes:
        affine: Whether to take X * scale + bias behind weights, too.
    """

    affine: bool = False

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every normalization that is found gets a record."""
        journal = Journal(logger)
        if graphs.opset_version(model) < batchnorm.FIRST_OPSET_THAT_RUNS:
            return journal.result(model, modified=False)
        modified = self._inline_functions(model, journal)
        trial = Journal(logger)
        if not self._find(model, trial):
            journal.records += trial.records
            self._note_affine(model, journal)
            return journal.result(model, modified=modified)
        opset.raise_ir_version(model, training_form.MIN_IR_VERSION)
        version = max(graphs.opset_version(model), training_form.MIN_OPSET)
        for note in opset.raise_opset(model, version):
            journal.note(note)
        momentum = _KERAS_MOMENTUM if model.producer_name == "tf2onnx" else None
        found = self._find(model, journal)
        replacer = Replacer(model, momentum, found)
        for match in found:
            name = replacer.replace(match)
            journal.add(name, "recognized", _reason(match))
        replacer.finish()
        _note_statistics(found, momentum, journal)
        self._note_affine(model, journal)
        return journal.result(model, modified=True)

    def _note_affine(self, model: ir.Model, journal: Journal) -> None:
        if self.affine or not any(node.op_type in ("Mul", "Div") for node in model.graph):
            return
        maps = Finder(model, model.graph, affine=True).find()
        maps = [match for match in maps if match.roles.epsilon is None]
        if maps:
            first = layer_name(maps[0])
            journal.note(
                f"scale * x + bias behind weights ({len(maps)}, the first '{first}') may be "
                "normalization whose statistics were computed away; 'syncbn-convert convert "
                "--recognize-affine' takes it"
            )

    def _find(self, model: ir.Model, journal: Journal) -> list[Match]:
        """Return what is to be replaced; what is not is recorded."""
        matches_of = partial(Finder, model, affine=self.affine)
        found = matches_of(model.graph).find()
        proven = [match for match in found if _is_proven(match, model)]
        reasons = {m.y: reason for m in proven if (reason := self._reason_to_leave(m))}
        reasons |= _reasons_against([match for match in proven if match.y not in reasons])
        for match in proven:
            if match.y in reasons:
                journal.add(layer_name(match), "skipped", reasons[match.y])
        for body, location in _bodies(model).items():
            for match in matches_of(body).find():
                reason = batchnorm.body_reason(location)
                journal.add(layer_name(match), "skipped", reason, location=location)
        return [match for match in proven if match.y not in reasons]

    def _reason_to_leave(self, match: Match) -> str:
        name = layer_name(match)
        options = self.options_of(name)
        if options is None:
            return "excluded" if matches(self.exclude, name) else "not included"
        if match.roles.of_batch and (matches(self.freeze, name) or options.frozen):
            return "cannot be frozen: its moving statistics are not in the model"
        return ""

    def _inline_functions(self, model: ir.Model, journal: Journal) -> bool:
        """Inline functions if that lets a normalization in them be found."""
        holders = {
            key
            for key, function in model.functions.items()
            if key[0] != training_form.DOMAIN
            and inlining.fits(function, model)
            and any(node.op_type in _ANCHORS for node in function.all_nodes())
        }
        if not holders:
            return False
        trial = graphs.clone(model)
        inlining.inline(trial, holders)
        silent = Journal(logger)
        if len(self._find(trial, silent)) <= len(self._find(model, silent)):
            return False
        inlining.inline(model, holders)
        names = ", ".join(sorted(f"{domain}::{name}" for domain, name, _ in holders))
        journal.note(f"model-local functions with normalization were inlined: {names}")
        return True


def _is_proven(match: Match, model: ir.Model) -> bool:
    values, epsilon = constant_values(match, model)
    return proof.holds(match, values, epsilon, model)


def _reason(match: Match) -> str:
    found = f"recognized in {len(match.interior)} nodes"
    if match.axis != 1:
        found += f", channels at axis {match.axis}"
    if match.roles.epsilon is None:
        found += ", mean and variance not known: 0 and 1 stand for them"
    return found


def _note_statistics(found: list[Match], momentum: float | None, journal: Journal) -> None:
    without = sum(match.roles.of_batch for match in found)
    if without:
        default = "Keras'" if momentum is not None else "ONNX's"
        journal.note(
            f"moving statistics of recognized layers ({without}) are not in the model: mean 0 and "
            "variance 1 stand for them until it is calibrated or trained; momentum is "
            f"{momentum or batchnorm.DEFAULTS['momentum']:.2g}, {default} default"
        )
    affine = sum(match.roles.epsilon is None for match in found)
    if affine:
        journal.note(
            f"of recognized layers ({affine}) only scale and bias are known: the function is kept, "
            "but calibrating changes it, and training begins with mean 0 and variance 1"
        )


def _reasons_against(found: list[Match]) -> dict[ir.Value, str]:
    """Return why matches are left alone: a value inside is read by what stays."""
    reasons: dict[ir.Value, str] = {}
    while True:
        left = [match for match in found if match.y not in reasons]
        going = {node for match in left for node in match.interior}
        results = {match.y for match in left}
        more = {
            match.y: reason for match in left if (reason := _read_elsewhere(match, going, results))
        }
        if not more:
            return reasons
        reasons |= more


def _read_elsewhere(match: Match, going: set[ir.Node], results: set[ir.Value]) -> str:
    for node in match.interior:
        value = node.outputs[0]
        if value in results:
            continue
        if value.is_graph_output():
            return f"'{value.name}' inside the normalization is a graph output"
        for usage in value.uses():
            if usage.node not in going:
                reader = graphs.label(usage.node)
                return f"'{value.name}' inside the normalization is read by '{reader}', too"
    return ""


def _bodies(model: ir.Model) -> dict[ir.Graph, str]:
    locations: dict[ir.Graph, str] = {}
    for node, location, function in graphs.walk(model):
        if function is None and location and isinstance(node.graph, ir.Graph):
            locations[node.graph] = location
    return locations
