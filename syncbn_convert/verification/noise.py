"""The error of the reference itself, which no candidate can be asked to stay below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from syncbn_convert.graph.dtypes import epsilon, is_floating
from syncbn_convert.verification.differences import largest_change
from syncbn_convert.verification.float64_twin import NoTwinError, build_twin
from syncbn_convert.verification.leaves import mapped
from syncbn_convert.verification.model import ModelFile, Progress
from syncbn_convert.verification.runners import OnnxRuntime, Runner, RunnerError
from syncbn_convert.verification.runs import Run
from syncbn_convert.verification.tolerance import Array, Feeds

Noise = dict[str, float]
"""Absolute error by output name."""


def measure_noise(
    model: ModelFile, runner: Runner, runs: Sequence[Run], progress: Progress, *, twin: bool
) -> tuple[list[Noise], bool]:
    """Return the noise of every run, and whether a float64 twin told it.

    Args:
        model: The reference.
        runner: The reference, loaded.
        runs: What it returned.
        progress: Is told before a twin is run.
        twin: Whether to try one.
    """
    if twin:
        progress(model.path, "running its float64 twin")
        noises = twin_noise(model, runs)
        if noises is not None:
            return noises, True
    progress(model.path, "running it")
    return perturbation_noise(model, runner, runs), False


def twin_noise(model: ModelFile, runs: Sequence[Run]) -> list[Noise] | None:
    """Return the distances from the float64 twin, or None where there is no twin that runs."""
    try:
        runner = OnnxRuntime(build_twin(model.model), folder=model.path.parent)
        return [
            _changes(run.outputs, runner.run(_map_floats(run.feed.arrays, _widen), [*run.outputs]))
            for run in runs
        ]
    except (NoTwinError, RunnerError):
        return None


def perturbation_noise(model: ModelFile, runner: Runner, runs: Sequence[Run]) -> list[Noise]:
    """Return the changes by graph optimizations and by inputs that are one rounding error off."""
    noises = [perturbed_changes(runner, run) for run in runs]
    if isinstance(runner, OnnxRuntime):
        try:
            plain = OnnxRuntime(model.path, optimize=False)
            again = [
                _changes(run.outputs, plain.run(run.feed.arrays, [*run.outputs])) for run in runs
            ]
        except RunnerError:
            return noises
        noises = [
            {name: max(size, other[name]) for name, size in noise.items()}
            for noise, other in zip(noises, again, strict=True)
        ]
    return noises


def perturbed_changes(runner: Runner, run: Run) -> Noise:
    """Return how far the outputs move when floating inputs change by one relative epsilon.

    Whole numbers stay: what turns them into integers would find others.
    """
    arrays = run.feed.arrays
    moving = {name: array for name, array in arrays.items() if name not in run.feed.whole}
    try:
        moved = runner.run({**arrays, **_map_floats(moving, _perturb)}, [*run.outputs])
    except RunnerError:
        return dict.fromkeys(run.outputs, 0.0)
    return _changes(run.outputs, moved)


def _changes(reference: Feeds, other: dict[str, Any]) -> Noise:
    return {name: _change(value, other[name]) for name, value in reference.items()}


def _change(reference: Array, other: Any) -> float:
    numeric = isinstance(other, np.ndarray) and (
        is_floating(reference.dtype) or reference.dtype.kind in "iub"
    )
    return largest_change(reference, other) if numeric and reference.shape == other.shape else 0.0


def _map_floats(arrays: Feeds, change: Callable[[Array], Array]) -> dict[str, Array]:
    def changed(array: Array) -> Array:
        return change(array) if is_floating(array.dtype) else array

    return {name: mapped(value, changed) for name, value in arrays.items()}


def _widen(array: Array) -> Array:
    return array.astype(np.float64)


def _perturb(array: Array) -> Array:
    signs = np.random.default_rng(0).choice((-1.0, 1.0), array.shape)
    with np.errstate(over="ignore"):
        return (_widen(array) * (1 + epsilon(array.dtype) * signs)).astype(array.dtype)
