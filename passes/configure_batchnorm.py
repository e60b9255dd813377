"""Options of the layers to BatchNormalization nodes and their parameters."""

from __future__ import annotations

import dataclasses
import logging
import zlib

import numpy as np
import onnx_ir as ir

from syncbn_convert.errors import ConversionError
from syncbn_convert.form import batchnorm
from syncbn_convert.form.batchnorm import PARAMETER_ROLES
from syncbn_convert.graph import constants, graphs, module_names
from syncbn_convert.graph.value_types import infer_shapes_of
from syncbn_convert.options.keras_objects import Initializer
from syncbn_convert.options.keras_objects.configs import describe
from syncbn_convert.options.layers import LayerRules, SyncBatchNormalizationOptions
from syncbn_convert.rewriting import Journal, RewriteResult
from syncbn_convert.rewriting.selection import Calls, Choice, SelectingPass, layers_with_options

logger = logging.getLogger(__name__)

_KERAS_NAME = {
    "scale": "gamma",
    "B": "beta",
    "input_mean": "moving_mean",
    "input_var": "moving_variance",
}
_NEUTRAL = {"scale": 1.0, "B": 0.0}
_SWITCH = {"scale": "scale", "B": "center"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigureBatchNorm(SelectingPass):
    """Give canonical BatchNormalization nodes the options of their layers.

    1. `momentum` and `epsilon` become attributes.
    2. `scale=False` and `center=False` replace gamma and beta by a Constant of ones or zeros, which
       nothing trains.
    3. Initializers replace the values of parameters. A random one without a seed of its own takes
       one from `rules.seed`, the node's name and the parameter's, so that layers differ and runs do
       not. A parameter that other nodes use too is copied first.
    4. What contradicts the node is refused: an axis that is not there or has another size than the
       parameters, and an axis or variance that ONNX's BatchNormalization cannot have where a layer
       stays one. What changes the function in inference (another axis, a dropped parameter that
       was not neutral) is refused unless `rules.reset` allows it.

    ```
    before   y = BatchNormalization(x, s, b, m, v)
    after    b = Constant<zeros>()  y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)
    ```
    """

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place; every node that an option changes gets a record."""
        journal = Journal(logger)
        changed = self._learn_ranks(model)
        choices = self.choose(model)
        for choice in choices:
            _check(choice, model, self.rules)
        texts: dict[int, list[str]] = {}
        chosen = [choice for choice in choices if choice.configurable]
        names = graphs.Names(model)
        for calls, options in layers_with_options(chosen):
            layer = _Target(calls, model, names, self.rules)
            changed |= layer.configure(options)
            texts.update({id(norm.node): layer.changes for norm in calls})
        for choice in chosen:
            if texts[id(choice.norm.node)]:
                text = ", ".join(texts[id(choice.norm.node)])
                journal.add(choice.norm.node, "configured", text, location=choice.location)
        return journal.result(model, modified=changed)

    def _learn_ranks(self, model: ir.Model) -> bool:
        """Infer the shapes of inputs whose channel axis is given; return whether any was found."""
        norms = (norm for norm, location in batchnorm.find(model) if not location)
        options = ((norm, self.options_of(*module_names.names_of(norm.node))) for norm in norms)
        moved = (norm for norm, given in options if given is not None and given.axis is not None)
        return infer_shapes_of(model, (norm.x for norm in moved))


class _Target:
    """One layer while it is configured."""

    def __init__(
        self, calls: Calls, model: ir.Model, names: graphs.Names, rules: LayerRules
    ) -> None:
        self.changes: list[str] = []
        self._calls = calls
        self._model = model
        self._names = names
        self._rules = rules
        self._name = graphs.label(calls[0].node)

    def configure(self, options: SyncBatchNormalizationOptions) -> bool:
        """Apply `options`; return whether the model changed."""
        self._describe(options)
        changed = [self._set_attribute(name, getattr(options, name)) for name in batchnorm.DEFAULTS]
        for role in PARAMETER_ROLES:
            switch = _SWITCH.get(role)
            initializer = getattr(options, f"{_KERAS_NAME[role]}_initializer")
            if switch is not None and getattr(options, switch) is False:
                changed.append(self._drop(role))
            elif initializer is not None:
                changed.append(self._initialize(role, initializer))
        return any(changed)

    def _describe(self, options: SyncBatchNormalizationOptions) -> None:
        """Say what other passes are going to do."""
        if options.axis not in (None, 1):
            self.changes.append(f"axis 1 -> {options.axis}")
        if options.unbiased:
            self.changes.append("unbiased moving variance")
        if options.group_size:
            self.changes.append(f"groups of {options.group_size} replicas")
        if options.synchronized is False and not options.frozen:
            self.changes.append("not synchronized")
        for role, switch in _SWITCH.items():
            name = _KERAS_NAME[role]
            given = [
                kind
                for kind in ("initializer", "regularizer", "constraint")
                if getattr(options, f"{name}_{kind}") is not None
            ]
            if getattr(options, switch) is False and given:
                self.changes.append(f"{name} {', '.join(given)} ignored, as it is dropped")

    def _set_attribute(self, name: str, value: float | None) -> bool:
        if value is None:
            return False
        changed = False
        for norm in self._calls:
            old = getattr(norm, name)
            if np.float32(old) != np.float32(value):
                self._say(f"{name} {old:.6g} -> {value:.6g}")
                norm.node.attributes.add(ir.AttrFloat32(name, float(value)))
                changed = True
        return changed

    def _drop(self, role: str) -> bool:
        """Replace gamma or beta by a Constant, in front of the first call."""
        value = self._calls[0].parameters[role]
        if value.producer() is not None:
            return False
        tensor = value.const_value
        assert tensor is not None
        neutral = np.full(tensor.shape.numpy(), _NEUTRAL[role], dtype=tensor.dtype.numpy())
        if not self._rules.reset:
            self._require_neutral(role, value, np.array_equal(tensor.numpy(), neutral))
        self._say(f"{_KERAS_NAME[role]} dropped (constant {_NEUTRAL[role]:g})")
        name = self._release(value, role)
        node = self._calls[0].node
        assert node.graph is not None
        constant = ir.node(
            "Constant",
            [],
            {"value": ir.tensor(neutral, name=name, dtype=tensor.dtype)},
            name=self._names.node(f"{self._name}/{_KERAS_NAME[role]}"),
        )
        output = constant.outputs[0]
        output.name, output.type, output.shape = name, value.type, value.shape
        node.graph.insert_before(node, constant)
        self._connect(role, output)
        return True

    def _require_neutral(self, role: str, value: ir.Value, neutral: bool) -> None:
        name = _KERAS_NAME[role]
        cause = "" if neutral else f"{name} '{value.name}' is not {_NEUTRAL[role]:g} everywhere"
        if constants.is_overridable(value, self._model.ir_version):
            cause = f"{name} '{value.name}' is an input that a caller may feed"
        if cause:
            raise ConversionError(
                f"node '{self._name}': {_SWITCH[role]}=False changes the function, as {cause}; "
                "pass --reset if that is meant"
            )

    def _initialize(self, role: str, initializer: Initializer) -> bool:
        value = self._calls[0].parameters[role]
        tensor = value.const_value
        if tensor is None or value.producer() is not None:
            raise ConversionError(
                f"node '{self._name}': {_KERAS_NAME[role]} '{value.name}' is no initializer, and "
                "cannot be given new values"
            )
        seed = (self._rules.seed, zlib.crc32(self._name.encode()), PARAMETER_ROLES.index(role))
        with np.errstate(over="ignore"):
            values = initializer(tensor.size, seed).astype(tensor.dtype.numpy())
        if not np.isfinite(values.astype(np.float64)).all():
            raise ConversionError(
                f"node '{self._name}': {describe(initializer)} gives values beyond "
                f"{tensor.dtype.numpy()} for {_KERAS_NAME[role]}; choose smaller ones"
            )
        if role == "input_var" and not (values >= 0).all():
            raise ConversionError(
                f"node '{self._name}': {describe(initializer)} gives a negative moving variance; "
                "choose an initializer of values from 0 up"
            )
        self._say(f"{_KERAS_NAME[role]} = {describe(initializer)}")
        if values.tobytes() == tensor.tobytes():
            return False
        if self._is_own(value, role):
            value.const_value = ir.tensor(values, name=value.name, dtype=tensor.dtype)
            return True
        name = self._release(value, role)
        copy = ir.Value(
            name=name,
            type=value.type,
            shape=value.shape,
            const_value=ir.tensor(values, name=name, dtype=tensor.dtype),
        )
        self._model.graph.register_initializer(copy)
        self._connect(role, copy)
        return True

    def _is_own(self, value: ir.Value, role: str) -> bool:
        """Whether nothing but this parameter of this layer uses `value`."""
        index = 1 + PARAMETER_ROLES.index(role)
        own = {(id(norm.node), index) for norm in self._calls}
        uses = {(id(usage.node), usage.idx) for usage in value.uses()}
        return uses <= own and not value.is_graph_output()

    def _release(self, value: ir.Value, role: str) -> str:
        """Return the name of what comes in place of `value`; it goes if nothing else uses it."""
        if not self._is_own(value, role):
            return self._names.value(f"{value.name}/{self._name}")
        graphs.remove_from(self._model.graph.inputs, [value])
        del self._model.graph.initializers[str(value.name)]
        return str(value.name)

    def _connect(self, role: str, value: ir.Value) -> None:
        for norm in self._calls:
            norm.node.replace_input_with(1 + PARAMETER_ROLES.index(role), value)

    def _say(self, text: str) -> None:
        if text not in self.changes:
            self.changes.append(text)


def _check(choice: Choice, model: ir.Model, rules: LayerRules) -> None:
    """Refuse options that contradict the node.

    Raises:
        ConversionError: naming the node.
    """
    norm, options = choice.norm, choice.options
    name = graphs.label(norm.node)
    if options.axis is not None and not choice.configurable:
        against = batchnorm.reason_against(norm, model, choice.location, options.axis)
        if against and not batchnorm.reason_against(norm, model, choice.location):
            raise ConversionError(
                f"node '{name}': {against}; give another axis, or exclude the node"
            )
    if choice.configurable:
        _check_unsynchronized(name, options)
    if options.axis is None or not choice.configurable:
        return
    moved = options.axis != 1 if norm.rank is None else options.axis % norm.rank != 1
    stays = "frozen" if choice.frozen else "not synchronized"
    if moved and (choice.frozen or options.synchronized is False):
        raise ConversionError(
            f"node '{name}': axis {options.axis}, but the node is {stays} and stays a "
            "BatchNormalization of ONNX, whose channel axis is 1; leave one of the two out"
        )
    if moved and not rules.reset:
        raise ConversionError(
            f"node '{name}': axis {options.axis} in place of 1 changes the function; pass --reset "
            "if that is meant"
        )


def _check_unsynchronized(name: str, options: SyncBatchNormalizationOptions) -> None:
    if options.synchronized is not False or options.frozen:
        return
    impossible = {"variance='unbiased'": options.unbiased, "group_size": options.group_size}
    for option, given in impossible.items():
        if given:
            raise ConversionError(
                f"node '{name}': synchronized=False gives ONNX's own training mode, which has no "
                f"{option}; give group_size=1 in place of it, or variance='population'"
            )
