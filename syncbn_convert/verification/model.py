"""The model files of a comparison, and which runtime takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from syncbn_convert.errors import ModelFileError, UnknownOperatorError, VerificationError
from syncbn_convert.files import model_file
from syncbn_convert.graph import graphs
from syncbn_convert.verification import unknown_operators
from syncbn_convert.verification.interface import Interface, read_interface
from syncbn_convert.verification.runners import (
    OnnxEvaluator,
    OnnxRuntime,
    Runner,
    RunnerError,
    one_line,
)

Progress = Callable[[Path, str], None]
"""Told which model is about to be loaded or run, so that a crash can be laid at its door."""

_NUMPY_OWN = 1
_FIRST_OPSET_THAT_THE_EVALUATOR_GETS_RIGHT = 14


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model file that was read.

    Attributes:
        path: The file.
        model: Its content; weights stay in the file until they are looked at.
        interface: Its interface.
    """

    path: Path
    model: ir.Model
    interface: Interface

    @property
    def has_feedable_interface(self) -> bool:
        """Whether ONNX Runtime's Python interface takes and gives all element types."""
        specs = (*self.interface.inputs, *self.interface.overridable, *self.interface.outputs)
        return all(
            spec.dtype is None or spec.dtype.numpy().isbuiltin == _NUMPY_OWN for spec in specs
        )

    @property
    def optimizable(self) -> bool:
        """Whether ONNX Runtime's optimizations change rounding alone.

        Around DequantizeLinear they quantize activations that the model does not.
        """
        nodes = (node for node, _, _ in graphs.walk(self.model))
        return not any(node.op_type == "DequantizeLinear" for node in nodes)


def open_model(path: Path) -> ModelFile:
    """Read a model file.

    Raises:
        ModelFileError: The file is no ONNX model.
    """
    try:
        model = model_file.read_unchecked(path)
    except Exception as error:
        raise ModelFileError(
            f"{path}: cannot be read as an ONNX model ({one_line(error)}); give a valid file"
        ) from error
    return ModelFile(path, model, read_interface(model))


def load_reference(
    reference: ModelFile, candidate: ModelFile, progress: Progress
) -> tuple[Runner, str]:
    """Load the reference: on ONNX Runtime, else on onnx's evaluator.

    Returns:
        The loaded model, and why it is onnx's evaluator; empty if it is not.

    Raises:
        UnknownOperatorError: ONNX Runtime lacks an operator.
        VerificationError: The model is refused, or onnx's evaluator would have to run
            BatchNormalization of opsets where it is wrong.
    """
    if not (reference.has_feedable_interface and candidate.has_feedable_interface):
        reason = "its Python interface does not take the element types of inputs and outputs"
    else:
        progress(reference.path, "loading it")
        try:
            return OnnxRuntime(reference.path, optimize=reference.optimizable), ""
        except RunnerError as error:
            if unknown := unknown_operators.names(reference.model):
                raise UnknownOperatorError(
                    f"{reference.path}: ONNX Runtime has no operator {unknown}",
                    cures=["pass --no-verify to go on without running the model"],
                ) from error
            if not error.no_kernel:
                raise _refused(reference, "ONNX Runtime", error) from error
            reason = str(error)
    for model in (reference, candidate):
        if _has_old_normalization(model.model):
            raise VerificationError(
                f"{model.path}: cannot be verified, ONNX Runtime does not run the reference "
                f"({reason}) and onnx's evaluator is wrong for BatchNormalization below opset "
                f"{_FIRST_OPSET_THAT_THE_EVALUATOR_GETS_RIGHT}",
                cures=["raise the opset", "pass --no-verify"],
            )
    return load_model(reference, progress, evaluator=True), reason


def load_model(model: ModelFile, progress: Progress, *, evaluator: bool) -> Runner:
    """Load a model.

    Args:
        model: The model.
        progress: Is told of the load.
        evaluator: Whether to take onnx's evaluator instead of ONNX Runtime.

    Raises:
        VerificationError: The runtime refuses the model.
    """
    progress(model.path, "loading it")
    try:
        if evaluator:
            return OnnxEvaluator(model.path)
        return OnnxRuntime(model.path, optimize=model.optimizable)
    except RunnerError as error:
        name = "onnx's reference evaluator" if evaluator else "ONNX Runtime"
        raise _refused(model, name, error) from error


def _refused(model: ModelFile, runtime: str, error: RunnerError) -> VerificationError:
    return VerificationError(
        f"{model.path}: {runtime} cannot load it ({error})",
        cures=["repair the model", "pass --no-verify"],
    )


def _has_old_normalization(model: ir.Model) -> bool:
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return any(
        node.op_type == "BatchNormalization"
        and node.domain == ""
        and body.opset_imports.get("", 1) < _FIRST_OPSET_THAT_THE_EVALUATOR_GETS_RIGHT
        for body in bodies
        for node in ir.traversal.RecursiveGraphIterator(body)
    )
