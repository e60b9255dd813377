"""Synchronized batch normalization in TensorFlow, in a process of its own.

`python -m tests.parity.tensorflow_oracle KIND CASES.pickle RESULTS.npz`, with one kind of layer and
one number of replicas: TensorFlow reuses collective keys, so that a second strategy in the process
fails or hangs.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.parity.cases import Case, Kind
from tests.parity.child import run_module

Array = npt.NDArray[Any]


def compute(kind: Kind, cases: Sequence[Case], folder: Path) -> dict[str, Array]:
    """Return TensorFlow's results, computed in a child process.

    Args:
        kind: Package of the layer.
        cases: Configurations with the same number of replicas.
        folder: For files that travel between the processes.

    Returns:
        `<case>/<step>/mean`, `…/var`, `…/y<replica>`, and `…/loss` where there are regularizers.
    """
    given, results = folder / "cases.pickle", folder / "results.npz"
    given.write_bytes(pickle.dumps(list(cases)))
    run_module(__name__, kind, given, results)
    with np.load(results) as arrays:
        return dict(arrays)


def _main(kind: str, given: str, results: str) -> None:
    cases: list[Case] = pickle.loads(Path(given).read_bytes())
    strategy = _strategy(len(cases[0].pieces))
    found: dict[str, Any] = {}
    for index, case in enumerate(cases):
        found.update({f"{index}/{name}": value for name, value in _run(kind, case, strategy)})
    np.savez(results, **found)


def _strategy(replicas: int) -> Any:
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"CPU:{rank}" for rank in range(replicas)])


def _layer(kind: str, case: Case) -> Any:
    layers = importlib.import_module(f"{kind}.layers")
    make = (
        layers.experimental.SyncBatchNormalization
        if kind == "tf_keras"
        else functools.partial(
            layers.BatchNormalization, synchronized=case.call.get("synchronized", True)
        )
    )
    policy = "mixed_float16" if case.dtype == "float16" else "float32"
    layer = make(
        axis=case.axis,
        momentum=case.momentum,
        epsilon=case.epsilon,
        center=case.center,
        scale=case.scale,
        dtype=policy,
        **case.keywords,
    )
    shape: list[int | None] = [None, *case.spatial]
    shape.insert(1 if case.axis == 1 else len(shape), case.channels)
    layer.build(tuple(shape))
    given = case.layer()
    for name, value in (
        ("gamma", given.scale),
        ("beta", given.bias),
        ("moving_mean", given.mean),
        ("moving_variance", given.var),
    ):
        variable = getattr(layer, name)
        if variable is not None and f"{name}_initializer" not in case.keywords:
            variable.assign(value)
    return layer


def _run(kind: str, case: Case, strategy: Any) -> list[tuple[str, Array]]:
    import tensorflow as tf

    with strategy.scope():
        layer = _layer(kind, case)
    layer.trainable = case.call.get("trainable", True)
    train = functools.partial(layer, training=case.call.get("training", True))
    found: list[tuple[str, Array]] = []
    for number, pieces in enumerate(case.batches()):
        x = strategy.experimental_distribute_values_from_function(
            lambda context, pieces=pieces: tf.constant(pieces[context.replica_id_in_sync_group])
        )
        outputs = strategy.experimental_local_results(strategy.run(train, args=(x,)))
        found += [(f"{number}/y{rank}", y.numpy()) for rank, y in enumerate(outputs)]
        found.append((f"{number}/mean", layer.moving_mean.numpy()))
        found.append((f"{number}/var", layer.moving_variance.numpy()))
        if any(name.endswith("regularizer") for name in case.keywords):
            found.append((f"{number}/loss", np.asarray(sum(layer.losses))))
    return found


if __name__ == "__main__":
    _main(*sys.argv[1:])
