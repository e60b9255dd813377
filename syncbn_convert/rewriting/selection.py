"""Which nodes a pass is about, and with which options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm, provenance
from syncbn_convert.form.batchnorm import BatchNorm
from syncbn_convert.graph import graphs, module_names
from syncbn_convert.options.layers import OPTION_NAMES, LayerRules, SyncBatchNormalizationOptions
from syncbn_convert.options.patterns import matches
from syncbn_convert.rewriting.contract import RewritePass

Calls = list[BatchNorm]
"""The calls of one layer: nodes that share all four parameters, in graph order."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A BatchNormalization and what is to become of it.

    Attributes:
        norm: The node.
        location: Graph that holds it; empty for the main graph.
        options: What is to become of it.
        reason: Why it is not synchronized; empty where it is.
        frozen: Whether it is to be in inference mode.
        configurable: Whether the options apply: to nodes that are synchronized, and to frozen ones
            that could be.
    """

    norm: BatchNorm
    location: str
    options: SyncBatchNormalizationOptions
    reason: str
    frozen: bool = False
    configurable: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectingPass(RewritePass):
    """A pass that is told by names which nodes it is about.

    Attributes:
        include: Regular expressions; only nodes whose name matches one are converted (empty: all).
        exclude: Regular expressions; nodes whose name matches one are left as they are.
        freeze: Regular expressions; nodes whose name matches one are put in inference mode.
        rules: Options of the layers, by name.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    rules: LayerRules = LayerRules()

    def choose(self, model: ir.Model) -> list[Choice]:
        """Return every BatchNormalization of `model`, in graph order.

        Where one call of a layer is left alone, so are the others.
        """
        choices = [self._choice(norm, model, at) for norm, at in batchnorm.find(model)]
        return _spread_reasons(choices)

    def options_of(self, *names: str) -> SyncBatchNormalizationOptions | None:
        """Return the options of the node that has these names; None where it is not selected.

        A frozen node keeps its channel axis, 1, as it stays a BatchNormalization of ONNX.
        """
        options = self.rules.of(*names)
        if matches(self.freeze, *names):
            return dataclasses.replace(options, axis=None)
        if (self.include and not matches(self.include, *names)) or matches(self.exclude, *names):
            return None
        return options

    def _choice(self, norm: BatchNorm, model: ir.Model, location: str) -> Choice:
        names = module_names.names_of(norm.node)
        options = self.options_of(*names)
        if provenance.read(norm.node) is not None:
            reason = "holds the state of a training form already; fold it first"
            return Choice(norm, location, SyncBatchNormalizationOptions(), reason)
        if options is None:
            listed = not self.include or matches(self.include, *names)
            reason = "excluded" if listed else "not included"
            return Choice(norm, location, SyncBatchNormalizationOptions(), reason)
        options = options.over(_of_layer(norm.node))
        against = batchnorm.reason_against(norm, model, location, options.channel_axis)
        if matches(self.freeze, *names):
            reason, frozen = "frozen: stays in inference mode", True
        else:
            reason, frozen = _frozen_by(options), options.frozen
            if not options.trainable:
                reason = reason or provenance.kept_because(norm.node)
                reason = reason or provenance.frozen_because(norm.node)
        return Choice(norm, location, options, reason or against, frozen, not against)


def _of_layer(node: ir.Node) -> SyncBatchNormalizationOptions:
    """Return what the layer of Keras has that the node comes from."""
    kept = provenance.layer_options(node)
    return SyncBatchNormalizationOptions(
        **{name: kept[name] for name in kept.keys() & OPTION_NAMES}
    )


def _frozen_by(options: SyncBatchNormalizationOptions) -> str:
    for name in ("trainable", "training"):
        if getattr(options, name) is False:
            return f"{name}=False: stays in inference mode"
    return ""


def layers(norms: Iterable[BatchNorm]) -> list[Calls]:
    """Group the nodes that share all four parameters."""
    found: dict[tuple[int, ...], Calls] = {}
    for norm in norms:
        key = tuple(id(value) for value in norm.parameters.values())
        found.setdefault(key, []).append(norm)
    return list(found.values())


def layers_with_options(
    choices: Iterable[Choice],
) -> list[tuple[Calls, SyncBatchNormalizationOptions]]:
    """Return the layers with the options that all their calls share.

    Raises:
        ConversionError: if the calls of a layer were given different options.
    """
    options = {id(choice.norm.node): choice.options for choice in choices}
    found: list[tuple[Calls, SyncBatchNormalizationOptions]] = []
    for calls in layers(choice.norm for choice in choices):
        first = options[id(calls[0].node)]
        for norm in calls:
            if options[id(norm.node)] != first:
                raise ConversionError(
                    f"nodes '{graphs.label(calls[0].node)}' and '{graphs.label(norm.node)}' are "
                    "one layer called twice, but were given different options; give both the same"
                )
        found.append((calls, first))
    return found


def _spread_reasons(choices: list[Choice]) -> list[Choice]:
    """Leave all calls of a layer alone where one is; only frozen together they are configured."""
    by_node = {id(choice.norm.node): choice for choice in choices}
    for layer in layers(choice.norm for choice in choices):
        calls = [by_node[id(norm.node)] for norm in layer]
        refused = next((choice for choice in calls if choice.reason), None)
        if refused is None or all(choice.frozen and choice.configurable for choice in calls):
            continue
        name = graphs.label(refused.norm.node)
        for choice in calls:
            reason = choice.reason or (
                f"one layer with node '{name}', which is left alone ({refused.reason})"
            )
            by_node[id(choice.norm.node)] = dataclasses.replace(
                choice, reason=reason, configurable=False
            )
    return list(by_node.values())
