"""If, Loop and Scan."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from syncbn_convert.xla.translations import Array, Call, operator

_MOST_TURNS = 10_000


@operator("If", known=(0,))
def branch(at: Call, condition: Array) -> Any:
    """One branch, if it is known which; else both are compiled."""
    if isinstance(condition, np.ndarray):
        return tuple(at.body("then_branch" if condition.any() else "else_branch", ()))
    return lax.cond(
        condition.reshape(()),
        lambda: tuple(map(jnp.asarray, at.body("then_branch", ()))),
        lambda: tuple(map(jnp.asarray, at.body("else_branch", ()))),
    )


@operator("Loop", known=(0, 1))
def loop(at: Call, count: Array | None, condition: Array | None, *carried: Array) -> Any:
    """A number of turns that is known, and a condition that is known in each."""
    turns = _MOST_TURNS if at.known(0) is None else int(np.asarray(count).reshape(()))
    going = condition is None or bool(np.asarray(_known(at, condition)).any())
    states = list(carried)
    collected: list[list[Array]] = []
    done = 0
    while going and done < turns:
        ahead, *found = at.body("body", (np.asarray(done, np.int64), np.asarray(True), *states))
        going = bool(np.asarray(_known(at, ahead)).any())
        states = found[: len(carried)]
        collected.append(found[len(carried) :])
        done += 1
    if going and turns == _MOST_TURNS:
        raise at.refuse("its end is not known", "give it a trip count")
    if not collected and len(at.node.outputs) > len(carried):
        raise at.refuse("it makes no turn, so that what it collects has no shape", "remove it")
    return (*states, *(jnp.stack(pieces) for pieces in zip(*collected, strict=True)))


def _known(at: Call, value: Array) -> Array:
    if isinstance(value, np.ndarray):
        return value
    raise at.refuse(
        "its condition depends on the data, and XLA has to know the number of turns beforehand",
        "run the model on ONNX Runtime (--engine threads)",
    )


@operator("Scan")
def scan(at: Call, *operands: Array) -> Any:
    """Any axes and directions."""
    inputs = at.integer("num_scan_inputs", 1)
    states, scanned = list(operands[: len(operands) - inputs]), operands[len(operands) - inputs :]
    axes = at.ints("scan_input_axes") or [0] * inputs
    backwards = at.ints("scan_input_directions") or [0] * inputs
    length = scanned[0].shape[axes[0]]
    collected: list[list[Array]] = []
    for turn in range(length):
        pieces = [
            jnp.take(value, length - 1 - turn if back else turn, axis)
            for value, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        found = at.body("body", (*states, *pieces))
        collected.append(found[len(states) :])
        states = found[: len(states)]
    outputs = len(at.node.outputs) - len(states)
    out_axes = at.ints("scan_output_axes") or [0] * outputs
    turned = at.ints("scan_output_directions") or [0] * outputs
    stacks = [
        jnp.stack(pieces[::-1] if back else pieces, axis)
        for pieces, axis, back in zip(zip(*collected, strict=True), out_axes, turned, strict=True)
    ]
    return (*states, *stacks)
