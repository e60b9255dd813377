"""One BatchNormalization node of any opset, read into the same words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from syncbn_convert.graph import constants, graphs

OP_TYPE = "BatchNormalization"
FORM_DOMAIN = "syncbn"
"""Of the training form's operators."""
FIRST_OPSET_WITH_TRAINING_MODE = 14
FIRST_OPSET_THAT_RUNS = 7
"""ONNX Runtime has no BatchNormalization kernel for earlier ones."""
_FIRST_OPSET_WITHOUT_IS_TEST = 7
INLINED = (
    "it only measures the batch, as a training form does whose functions another tool has inlined; "
    "take the form that 'syncbn-convert' wrote, and run other tools on what 'fold' makes of it"
)
MODE_LOST = (
    "it has the outputs of training mode and no training_mode, so that no runtime loads it; "
    "'syncbn-convert fold' repairs it"
)
DEFAULTS = {"epsilon": float(np.float32(1e-5)), "momentum": float(np.float32(0.9))}
"""Of the standard, the same in every opset, at the precision of an ONNX attribute."""

PARAMETER_ROLES = ("scale", "B", "input_mean", "input_var")
MOVING_ROLES = ("input_mean", "input_var")


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """A BatchNormalization node and the opset that says what it means."""

    node: ir.Node
    opset: int

    @property
    def x(self) -> ir.Value | None:
        """The input [N, C, ...]."""
        return self.node.inputs[0] if self.node.inputs else None

    @property
    def parameters(self) -> dict[str, ir.Value]:
        """Scale, B, input_mean and input_var by role, each [C]; a missing one is left out."""
        return {
            role: value
            for role, value in zip(PARAMETER_ROLES, self.node.inputs[1:5], strict=False)
            if value is not None
        }

    @property
    def epsilon(self) -> float:
        """Added to the variance inside the root."""
        return self.node.attributes.get_float("epsilon", DEFAULTS["epsilon"])

    @property
    def momentum(self) -> float:
        """Share of the old moving statistic that an update keeps."""
        return self.node.attributes.get_float("momentum", DEFAULTS["momentum"])

    @property
    def spatial(self) -> bool:
        """Whether statistics are per channel; False (until opset 8) means per activation."""
        return self.node.attributes.get_int("spatial", 1) != 0

    @property
    def training_mode(self) -> bool:
        """Whether the node normalizes by batch statistics.

        Opset 14 has an attribute for it, opset 7 to 13 tell by the number of outputs, and earlier
        ones have `is_test`, which defaults to 0.
        """
        if self.opset >= FIRST_OPSET_WITH_TRAINING_MODE:
            return self.node.attributes.get_int("training_mode", 0) != 0
        if self.opset >= _FIRST_OPSET_WITHOUT_IS_TEST:
            return any(output.name for output in self.node.outputs[1:])
        return self.node.attributes.get_int("is_test", 0) == 0

    @property
    def mode_lost(self) -> bool:
        """Whether it has the outputs of training mode, and no mode that makes them.

        Other tools drop the attribute of opset 14 and later and leave the outputs; no runtime
        loads such a node, and what it was is training mode.
        """
        has_attribute = self.opset >= FIRST_OPSET_WITH_TRAINING_MODE
        return has_attribute and not self.training_mode and len(self.node.outputs) > 1

    @property
    def running_outputs(self) -> list[ir.Value | None]:
        """Outputs 2 and 3, the updated moving statistics; None where absent."""
        return [self._output(1), self._output(2)]

    @property
    def saved_outputs(self) -> list[ir.Value]:
        """Outputs 4 and 5 (until opset 13), as far as they are there."""
        return [output for output in (self._output(3), self._output(4)) if output is not None]

    @property
    def channels(self) -> int | None:
        """Number of channels, as the first parameter of known shape tells it."""
        for value in self.parameters.values():
            if value.shape is not None and len(value.shape) == 1:
                size = value.shape[0]
                if isinstance(size, int):
                    return size
        return None

    @property
    def rank(self) -> int | None:
        """Number of axes of the input; None where it is not known."""
        return len(self.x.shape) if self.x is not None and self.x.shape is not None else None

    @property
    def dtype(self) -> ir.DataType | None:
        """Element type of the input; that of scale where the input's is not known."""
        if self.x is not None and self.x.dtype is not None:
            return self.x.dtype
        scale = self.parameters.get("scale")
        return scale.dtype if scale is not None else None

    @property
    def dtype_name(self) -> str | None:
        """The input's element type as NumPy calls it, such as `float32`."""
        return str(self.dtype.numpy()) if self.dtype is not None else None

    def detail(self) -> dict[str, Any]:
        """What tables show beside the name."""
        return {"channels": self.channels, "dtype": self.dtype_name}

    def _output(self, index: int) -> ir.Value | None:
        outputs = self.node.outputs
        return outputs[index] if index < len(outputs) and outputs[index].name else None


def is_batchnorm(node: ir.Node) -> bool:
    """Whether the node is a BatchNormalization of standard ONNX."""
    return node.op_type == OP_TYPE and node.domain in graphs.STANDARD_DOMAINS


def find(model: ir.Model) -> Iterator[tuple[BatchNorm, str]]:
    """Yield every BatchNormalization with its location (empty: main graph).

    Those that the functions of the training form are built of do not count.
    """
    opset = graphs.opset_version(model)
    for node, location, function in graphs.walk(model):
        if is_batchnorm(node) and (function is None or function.domain != FORM_DOMAIN):
            own_opset = opset if function is None else function.opset_imports.get("", opset)
            yield BatchNorm(node, own_opset), location


def notes_on_lost_modes(model: ir.Model) -> list[str]:
    """Return a note for each node that has the outputs of training mode and no mode."""
    return [
        f"node '{graphs.label(norm.node)}': {MODE_LOST}"
        for norm, _ in find(model)
        if norm.mode_lost
    ]


def reason_against(norm: BatchNorm, model: ir.Model, location: str, axis: int = 1) -> str:
    """Return why a node cannot be synchronized exactly over `axis`; empty where it can."""
    kernel = INLINED if only_measures(norm) else ""
    checks = (kernel, body_reason(location), _shape_reason(norm, axis), _saved_reason(norm))
    return next((reason for reason in checks if reason), "") or _parameter_reason(norm, model, axis)


def only_measures(norm: BatchNorm) -> bool:
    """Whether a node only measures a batch, as the kernel inside the training form does."""
    node = norm.node
    unread = not node.outputs[0].uses() and not node.outputs[0].is_graph_output()
    read = any(output is not None and output.uses() for output in norm.running_outputs)
    return norm.training_mode and unread and read


def body_reason(location: str) -> str:
    """Return why a node at `location` cannot be synchronized; empty where it can."""
    if (location and not location.startswith("function ")) or " / " in location:
        return (
            f"inside {location}: replicas could take different ways, and a collective in a "
            "control-flow body would then wait for ever"
        )
    return ""


def _shape_reason(norm: BatchNorm, axis: int) -> str:
    if not norm.spatial:
        return "spatial=0 normalizes each activation on its own, not each channel"
    if norm.x is None or len(norm.parameters) != len(PARAMETER_ROLES):
        return "one of the inputs X, scale, B, input_mean and input_var is missing"
    if norm.x.shape is not None and len(norm.x.shape) < 2:
        return f"the input has rank {len(norm.x.shape)}; a channel axis needs at least 2"
    return _axis_reason(axis, norm.rank)


def _axis_reason(axis: int, rank: int | None) -> str:
    if rank is not None and not -rank <= axis < rank:
        return f"axis {axis} is out of range for an input of rank {rank}"
    if axis == 0 or (rank is not None and axis == -rank):
        return f"axis {axis} is that of the samples, not of channels"
    return ""


def _saved_reason(norm: BatchNorm) -> str:
    for value in norm.saved_outputs:
        if value.uses() or value.is_graph_output():
            return (
                f"output '{value.name}' (saved statistic) is used, and what it holds "
                "differs between runtimes"
            )
    return ""


def _parameter_reason(norm: BatchNorm, model: ir.Model, axis: int) -> str:
    lengths: dict[str, int] = {}
    for role, value in norm.parameters.items():
        if constants.is_overridable(value, model.ir_version):
            if role in MOVING_ROLES:
                return f"{role} '{value.name}' is an overridable input that a caller may feed"
            tensor = value.const_value
        else:
            tensor = constants.constant_tensor(value, model)
        if tensor is None:
            origin = "fed by the caller" if value.is_graph_input() else "computed at run time"
            return f"{role} '{value.name}' is {origin}"
        if len(tensor.shape) != 1:
            return f"{role} '{value.name}' has rank {len(tensor.shape)} instead of 1"
        lengths[role] = int(tensor.shape.numpy()[0])
    axis_size = norm.x.shape[axis] if norm.x is not None and norm.x.shape is not None else None
    if isinstance(axis_size, int):
        lengths[f"axis {axis} of the input"] = axis_size
    if len(set(lengths.values())) > 1:
        return "the numbers of channels differ: " + ", ".join(
            f"{role} {length}" for role, length in lengths.items()
        )
    return ""


def reason_against_folding(norm: BatchNorm, location: str) -> str:
    """Return why a training-mode node cannot go to inference mode; empty where it can."""
    for saved in norm.saved_outputs:
        if saved.uses():
            return (
                f"saved statistic '{saved.name}' of the batch is read by another node, and in "
                "inference mode there is none"
            )
    for value in (*norm.running_outputs, *norm.saved_outputs):
        if value is not None and value.is_graph_output() and location:
            return f"its statistic '{value.name}' is returned by {location}, which needs it"
    return ""


def put_in_inference_mode(norm: BatchNorm) -> list[str]:
    """Make a training-mode node normalize by its moving statistics; return the outputs removed.

    In inference mode nothing moves the statistics: whatever reads a running output reads the moving
    statistic itself, and a running or saved output that the graph returned is returned no more.
    """
    node = norm.node
    removed: list[str] = []
    for index, output in enumerate(node.outputs[1:5], start=1):
        if output.is_graph_output():
            removed.append(str(output.name))
            graph = output.graph
            assert graph is not None
            graphs.remove_from(graph.outputs, [output])
        moving = node.inputs[index + 2] if index < 3 else None
        if moving is not None:
            output.replace_all_uses_with(moving)
    node.resize_outputs(1)
    node.attributes.pop("training_mode", None)
    if norm.opset < _FIRST_OPSET_WITHOUT_IS_TEST:
        node.attributes.add(ir.AttrInt64("is_test", 1))
    return removed
