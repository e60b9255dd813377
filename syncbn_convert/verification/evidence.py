"""What a comparison proves: whether its outputs could have differed, and been seen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syncbn_convert.graph import graphs, random_nodes
from syncbn_convert.graph.dtypes import is_floating
from syncbn_convert.reports import OutputDifference
from syncbn_convert.verification import leaves
from syncbn_convert.verification.differences import Difference, compare_values
from syncbn_convert.verification.model import ModelFile
from syncbn_convert.verification.runs import Run
from syncbn_convert.verification.tolerance import Array

_LARGE_SHARE = 0.01
"""Of an output's range; a tolerance beyond it lets changes pass that users would see."""
_NAMED = 3


def without_randomness(
    models: Sequence[ModelFile], folder: Path
) -> tuple[list[ModelFile], list[str]]:
    """Return models with dropout and stochastic depth switched off, and a note that says so.

    Args:
        models: The models; those that draw no random numbers are returned as they are.
        folder: Where changed models are written.
    """
    quiet, switched = [], []
    for number, model in enumerate(models):
        if next(random_nodes.find(model.model), None) is None:
            quiet.append(model)
            continue
        changed, names = _silenced(model, folder / str(number))
        quiet.append(changed)
        switched += names
    names = list(dict.fromkeys(switched))
    if not names:
        return quiet, []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return quiet, [
        "compared with dropout and stochastic depth switched off: "
        + ", ".join(f"'{name}'" for name in names[:_NAMED])
        + more
    ]


def _silenced(model: ModelFile, folder: Path) -> tuple[ModelFile, list[str]]:
    from syncbn_convert.files import model_file  # these take time, and few models need them
    from syncbn_convert.passes import SwitchRandomnessOff

    content = graphs.clone(model.model)
    done = SwitchRandomnessOff(fed=True).call(content)
    names = [record.node for record in done.records if record.action == "switched off"]
    if not names:
        return model, []
    folder.mkdir()
    path = folder / model.path.name
    model_file.write_model(content, path)
    return dataclasses.replace(model, path=path, model=content), names


def random_outputs(models: Sequence[ModelFile], names: Sequence[str]) -> dict[str, str]:
    """Return those of the named outputs that random numbers decide, each with why."""
    found: dict[str, str] = {}
    for model in models:
        found = {**random_nodes.random_outputs(model.model), **found}
    return {
        name: f"nothing is proven: node '{found[name]}' draws random numbers"
        for name in names
        if name in found
    }


def weigh(
    outputs: Sequence[OutputDifference],
    runs: Sequence[Run],
    differences: Sequence[dict[str, Difference]],
    random: dict[str, str],
    *,
    derived: bool,
) -> tuple[list[OutputDifference], list[str]]:
    """Return the outputs, those about which nothing is proven as unequal, and notes.

    Args:
        outputs: What the comparison found.
        runs: The runs of the reference.
        differences: The differences of each run, by output.
        random: Outputs that random numbers decide, with why.
        derived: Whether the tolerance is derived; one that the user gave is taken as it is.
    """
    weighed, notes = [], []
    for output in outputs:
        if output.name in random:
            weighed.append(dataclasses.replace(output, equal=False, detail=random[output.name]))
            notes.append(f"output '{output.name}': {random[output.name]}")
            continue
        values = [run.outputs[output.name] for run in runs[: len(differences)]]
        own = [by_name[output.name] for by_name in differences]
        found = list(_weaknesses(output.name, values, runs, own))
        notes += [f"output '{output.name}': {text}" for text in found]
        hidden = derived and output.equal and _range_share(values, output.name, differences) >= 1.0
        if hidden:
            output = dataclasses.replace(output, equal=False, detail=_HIDDEN)
        weighed.append(output)
    return weighed, notes


_HIDDEN = "nothing is proven: the tolerance is as large as the output's range"


def is_unproven(output: OutputDifference) -> bool:
    """Whether an output does not count as unequal, but as one that could not be compared."""
    return output.detail.startswith("nothing is proven")


def _weaknesses(
    name: str, values: Sequence[Array], runs: Sequence[Run], differences: Sequence[Difference]
) -> Iterator[str]:
    if name.endswith(leaves.STRUCTURE):
        if all(str(value) in leaves.EMPTY for value in values):
            yield "it holds nothing in any run, so nothing is proven about it"
        return
    if all(value.size == 0 for value in values):
        yield "it holds no element in any run, so nothing is proven about it"
        return
    floating = is_floating(values[0].dtype)
    if floating and not any(np.isfinite(value.astype(np.float64)).any() for value in values):
        nan = all(np.isnan(value.astype(np.float64)).all() for value in values)
        what = "NaN" if nan else "not finite"
        yield f"it is {what} everywhere, on both sides, so nothing is proven about it"
        return
    if _is_constant(values, runs, differences):
        yield "it is the same for all inputs that were tried, so little is proven about it"
    share = _share(values, [difference.allowed for difference in differences])
    if share > _LARGE_SHARE:
        yield f"the tolerance is {100 * share:.2g} % of its range, so smaller changes pass"


def _is_constant(
    values: Sequence[Array], runs: Sequence[Run], differences: Sequence[Difference]
) -> bool:
    """Whether other inputs of the same shapes give the same output, within the tolerance."""
    pairs = [
        (first, second)
        for first in range(len(values))
        for second in range(first + 1, len(values))
        if _differ_in_values_alone(runs[first], runs[second])
        and values[first].shape == values[second].shape
    ]
    return bool(pairs) and all(
        compare_values(values[first], values[second], differences[first].allowed).equal
        for first, second in pairs
    )


def _differ_in_values_alone(first: Run, second: Run) -> bool:
    mine, others = first.feed.arrays, second.feed.arrays
    if mine.keys() != others.keys():
        return False
    pairs = [
        pair
        for name in mine
        for pair in zip(_tensors(mine[name]), _tensors(others[name]), strict=True)
    ]
    same_shapes = all(one.shape == other.shape for one, other in pairs)
    return same_shapes and not all(np.array_equal(one, other) for one, other in pairs)


def _tensors(fed: Any) -> list[Array]:
    """Return what is fed to an input as tensors."""
    return [value for name, value in leaves.leaves("", fed).items() if name != leaves.STRUCTURE]


def _range_share(
    values: Sequence[Array], name: str, differences: Sequence[dict[str, Difference]]
) -> float:
    return _share(values, [by_name[name].allowed for by_name in differences])


def _share(values: Sequence[Array], allowed: Sequence[float]) -> float:
    """Return the smallest tolerance of all runs as a share of the range of all values."""
    finite = [value[np.isfinite(value)] for value in map(_widened, values)]
    lows = [float(value.min()) for value in finite if value.size]
    highs = [float(value.max()) for value in finite if value.size]
    spread = max(highs) - min(lows) if lows else 0.0
    return min(allowed) / spread if spread else 0.0


def _widened(value: Array) -> Array:
    numeric = is_floating(value.dtype) or value.dtype.kind in "iub"
    return value.astype(np.float64) if numeric else np.zeros(0)
