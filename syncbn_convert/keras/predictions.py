"""An imported model against what its own framework predicts."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import tensorflow as tf

from syncbn_convert.errors import VerificationError
from syncbn_convert.files import model_file
from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.keras.functions import InferenceFunction
from syncbn_convert.keras.tracing import freeze
from syncbn_convert.keras.twin import NoTwinError, build_twin
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.verification.differences import Difference, compare_values, largest_change
from syncbn_convert.verification.interface import read_interface
from syncbn_convert.verification.launcher import run_model_file
from syncbn_convert.verification.noise import Noise, perturbed_changes
from syncbn_convert.verification.runners import RunnerError, one_line
from syncbn_convert.verification.runs import Run, collect_runs
from syncbn_convert.verification.tolerance import (
    NOISE_THAT_HIDES_ERRORS,
    Array,
    scale_of,
    tolerance_for,
)

_NO_ROUNDING = 0.1
"""Relative distance from which a twin computes something else, such as other random numbers."""


@dataclasses.dataclass(frozen=True)
class Framework:
    """A model that TensorFlow runs, as `verification.runners.Runner` has it."""

    function: InferenceFunction

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Any]:
        """Return the named outputs.

        Raises:
            RunnerError: if TensorFlow refuses the inputs.
        """
        try:
            found = self.function.run(feeds)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise RunnerError(one_line(error)) from error
        return {name: found[name] for name in outputs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far an imported model is from its framework's predictions, relative to the largest one.

    Attributes:
        relative_error: The error that came nearest to its tolerance.
        tolerance: That tolerance.
        noise: Largest error of the framework itself.
    """

    relative_error: float
    tolerance: float
    noise: float

    def __str__(self) -> str:
        text = (
            "the imported model equals the framework's predictions: largest relative error "
            f"{self.relative_error:.2g}, tolerance {self.tolerance:.2g}"
        )
        if self.noise > NOISE_THAT_HIDES_ERRORS:
            text += f"; rounding alone moves them by {self.noise:.1e}, so this says little"
        return text


def compare(model: ir.Model, function: InferenceFunction, options: VerifyOptions) -> Comparison:
    """Compare an imported model on ONNX Runtime with its framework, on random inputs.

    The tolerance is that of `verification.tolerance`, where the reference's own error is its
    distance from the float64 twin of its graph of TensorFlow.

    Raises:
        VerificationError: if an output differs, or the model does not run.
    """
    framework = Framework(function)
    own = dataclasses.replace(options, seeds=1, data=None)
    runs = collect_runs(read_interface(model), framework, own, function.outputs)
    noises = _twin_noise(function, runs) or [perturbed_changes(framework, run) for run in runs]
    tolerance = tolerance_for(model, rtol=options.rtol, atol=options.atol)
    differences: list[Difference] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imported.onnx"
        model_file.write_model(model, path)
        for run, noise in zip(runs, noises, strict=True):
            found = _run_alike(path, run, own)
            for name, wanted in run.outputs.items():
                allowed = tolerance.allowed(wanted, noise[name])
                difference = compare_values(wanted, found[name], allowed)
                _require(name, difference)
                differences.append(difference)
    nearest = max(differences, key=Difference.order)
    return Comparison(
        relative_error=nearest.relative, tolerance=nearest.tolerance, noise=_largest(runs, noises)
    )


def _run_alike(path: Path, run: Run, options: VerifyOptions) -> dict[str, Array]:
    """Run a model on the inputs of a run, which are made again from their shapes and the seed."""
    shapes = {name: array.shape for name, array in run.feed.arrays.items()}
    [outputs] = run_model_file(path, dataclasses.replace(options, input_shapes=shapes))
    return outputs


def _twin_noise(function: InferenceFunction, runs: Sequence[Run]) -> list[Noise] | None:
    """Return the distances from the float64 twin; None where none runs and is one."""
    try:
        frozen, _ = freeze(function.concrete)
        twin = build_twin(frozen)
        noises = [_distances(twin, function, run) for run in runs]
        return noises if _largest(runs, noises) < _NO_ROUNDING else None
    except (NoTwinError, tf.errors.OpError, ValueError, TypeError):
        return None


def _distances(twin: Any, function: InferenceFunction, run: Run) -> Noise:
    wide = [_wide(run.feed.arrays[name]) for name in function.inputs]
    exact = dict(zip(function.outputs, (value.numpy() for value in twin(*wide)), strict=True))
    return {
        name: largest_change(value, exact[name]) if is_floating(value.dtype) else 0.0
        for name, value in run.outputs.items()
    }


def _wide(array: Array) -> Any:
    return tf.constant(array.astype(np.float64) if is_floating(array.dtype) else array)


def _require(name: str, difference: Difference) -> None:
    if not difference.equal:
        error = difference.detail or f"{difference.relative:.1e} relative"
        raise VerificationError(
            f"the imported model differs from the framework's predictions: output '{name}': "
            f"{error}, tolerance {difference.tolerance:.1e}; nothing was written (report this, or "
            "pass --no-verify or --rtol)"
        )


def _largest(runs: Sequence[Run], noises: Sequence[Noise]) -> float:
    return max(
        (
            noise[name] / scale_of(value)
            for run, noise in zip(runs, noises, strict=True)
            for name, value in run.outputs.items()
            if is_floating(value.dtype)
        ),
        default=0.0,
    )
