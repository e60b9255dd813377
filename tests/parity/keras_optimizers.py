"""Keras's optimizers, in a process of its own.

`python -m tests.parity.keras_optimizers CASES.pickle RESULTS.npz`
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.parity.child import run_module

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An optimizer and what it is given.

    Attributes:
        optimizer: Name of the class in keras.optimizers.
        options: Its arguments.
        rates: The learning rate of each step.
        weights: The variables.
        gradients: Those of each step.
        constraint: Name of a class in keras.constraints for the first variable.
        excluded: Variables, by number, that are left out of the weight decay.
    """

    optimizer: str
    options: dict[str, Any]
    rates: tuple[float, ...]
    weights: list[Array]
    gradients: list[list[Array]]
    constraint: str = ""
    excluded: tuple[int, ...] = ()


def compute(cases: Sequence[Case], folder: Path) -> dict[str, Array]:
    """Return `<case>/<variable>`, and `<case>/slots/<number>` in Keras's order."""
    given, results = folder / "cases.pickle", folder / "results.npz"
    given.write_bytes(pickle.dumps(list(cases)))
    run_module(__name__, given, results)
    with np.load(results) as arrays:
        return dict(arrays)


def _main(given: str, results: str) -> None:
    cases: list[Case] = pickle.loads(Path(given).read_bytes())
    found: dict[str, Any] = {}
    for index, case in enumerate(cases):
        found.update({f"{index}/{name}": value for name, value in _run(case).items()})
    np.savez(results, **found)


def _run(case: Case) -> dict[str, Array]:
    import keras

    layer = keras.layers.Layer()
    variables = []
    for number, value in enumerate(case.weights):
        constraint = getattr(keras.constraints, case.constraint)() if case.constraint else None
        variable = layer.add_weight(
            shape=value.shape,
            dtype=str(value.dtype),
            constraint=constraint if number == 0 else None,
        )
        variable.assign(value)
        variables.append(variable)
    optimizer = getattr(keras.optimizers, case.optimizer)(**case.options)
    if case.excluded:
        optimizer.exclude_from_weight_decay(var_list=[variables[at] for at in case.excluded])
    optimizer.build(variables)
    for rate, gradients in zip(case.rates, case.gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(value) for value in gradients], variables)
    slots = [variable.numpy() for variable in optimizer.variables[2:]]
    return {
        **{str(number): variable.numpy() for number, variable in enumerate(variables)},
        **{f"slots/{number}": value for number, value in enumerate(slots)},
    }


if __name__ == "__main__":
    _main(*sys.argv[1:])
