"""Keras' initializers, regularizers and constraints, in a process of its own.

`python -m tests.parity.keras_objects REQUESTS.json RESULTS.npz`: each request is one object and
what to call it on; the results are numbered alike.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.parity.child import run_module

Array = npt.NDArray[Any]
Request = Mapping[str, Any]


def compute(requests: Sequence[Request], folder: Path) -> list[Array]:
    """Return what Keras computes.

    Args:
        requests: Dictionaries of `package` (keras or tf_keras), `kind` (initializers, regularizers
            or constraints), `given` (a name or a configuration), and `channels` or `values`.
        folder: For files that travel between the processes.
    """
    given, results = folder / "requests.json", folder / "objects.npz"
    given.write_text(json.dumps(list(requests)))
    run_module(__name__, given, results)
    with np.load(results) as arrays:
        return [arrays[str(number)] for number in range(len(requests))]


def _main(given: str, results: str) -> None:
    requests: list[Request] = json.loads(Path(given).read_text())
    found = {str(number): _compute(request) for number, request in enumerate(requests)}
    np.savez(results, **found)  # type: ignore[arg-type]


def _compute(request: Request) -> Array:
    module = importlib.import_module(f"{request['package']}.{request['kind']}")
    made = module.get(request["given"])
    if "channels" in request:
        return np.asarray(made((request["channels"],), dtype="float32"))
    return np.asarray(made(np.array(request["values"], dtype=np.float32)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
