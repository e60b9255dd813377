"""Runs of the reference: the inputs it takes, what it returns, and how exact that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from syncbn_convert.errors import UsageError, VerificationError
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.verification import leaves
from syncbn_convert.verification.feeds import (
    LARGEST_WHOLES,
    Feed,
    Shapes,
    data_feeds,
    random_feed,
    size_attempts,
)
from syncbn_convert.verification.interface import Interface
from syncbn_convert.verification.runners import Runner, RunnerError
from syncbn_convert.verification.tolerance import Array

_MOST_ELEMENTS = 1 << 25
"""Of one input that is made up; beyond it, memory runs out on small machines."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the reference.

    Attributes:
        feed: What went in.
        outputs: What came out, by name.
    """

    feed: Feed
    outputs: dict[str, Array]


_MOST_IN_ALL = 1 << 27


def collect_runs(
    interface: Interface,
    runner: Runner,
    options: VerifyOptions,
    outputs: Sequence[str],
    *,
    sizes: int | None = None,
) -> list[Run]:
    """Run a model on random inputs of several sizes and on the user's data.

    Sizes that the model refuses are passed over.

    Args:
        interface: Interface of the model.
        runner: The model.
        options: Seeds, shapes and data.
        outputs: Names of the outputs to keep.
        sizes: Number of sizes; None is all.

    Raises:
        UsageError: The model refuses the user's data, or a shape that the user gave is wrong.
        VerificationError: The model runs on no size that was tried.
    """
    runs = list(_data_runs(interface, runner, options, outputs))
    try:
        runs += _random_runs(interface, runner, options, outputs, sizes)
    except VerificationError:
        if not runs:
            raise
    leaves.filled([run.outputs for run in runs])
    return runs


def _data_runs(
    interface: Interface, runner: Runner, options: VerifyOptions, outputs: Sequence[str]
) -> Iterator[Run]:
    for feed in data_feeds(interface.inputs, options):
        try:
            yield Run(feed, runner.run(feed.arrays, outputs))
        except RunnerError as error:
            raise UsageError(
                f"{feed.label}: the model does not run on it ({error}); give data that it takes"
            ) from error


def _random_runs(
    interface: Interface,
    runner: Runner,
    options: VerifyOptions,
    outputs: Sequence[str],
    sizes: int | None,
) -> list[Run]:
    runs: list[Run] = []
    seen: list[Shapes] = []
    refusal = ""
    seeds = range(options.seed, options.seed + options.seeds)
    for attempts in size_attempts(interface.inputs, options.input_shapes)[:sizes]:
        for shapes in (attempt for attempt in attempts if attempt not in seen):
            if any(math.prod(shape) > _MOST_ELEMENTS for shape in shapes.values()):
                refusal = f"{_MOST_ELEMENTS} elements of one input are the most that is tried"
                continue
            if sum(map(math.prod, shapes.values())) > _MOST_IN_ALL:
                refusal = f"{_MOST_IN_ALL} elements of all inputs are the most that is tried"
                continue
            try:
                taken = seeds[:1] if runs else seeds
                runs += _runs_of_size(interface, runner, shapes, taken, outputs)
            except RunnerError as error:
                refusal = str(error)
                continue
            seen.append(shapes)
            break
    if not runs:
        names = [spec.name for spec in interface.inputs]
        raise VerificationError(
            f"the model runs on no size that was tried (last: {refusal})",
            cures=[
                *(
                    ["give " + " ".join(f"--input-shape {name}:DIMS" for name in names)]
                    * bool(names)
                ),
                "give --data",
                "pass --no-verify",
            ],
        )
    return runs


def _runs_of_size(
    interface: Interface,
    runner: Runner,
    shapes: Shapes,
    seeds: Sequence[int],
    outputs: Sequence[str],
) -> list[Run]:
    """Run a model on inputs of one size, with smaller whole numbers where it refuses larger ones.

    Raises:
        RunnerError: It refuses all; the message is that for the largest numbers.
    """
    refusals: list[RunnerError] = []
    for largest in LARGEST_WHOLES if any(spec.whole for spec in interface.inputs) else (None,):
        feeds = [random_feed(interface.inputs, shapes, seed, largest) for seed in seeds]
        try:
            return [Run(feed, runner.run(feed.arrays, outputs)) for feed in feeds]
        except RunnerError as error:
            refusals.append(RunnerError(f"{feeds[0].label}: {error}"))
    raise refusals[0]
