"""What a model says of single weights: not trained, penalized, constrained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from syncbn_convert.form.provenance import PREFIX

_KEY = PREFIX + "weights"
_REMARKS = PREFIX + "training_remarks"
_VALUE_KEY = PREFIX + "weight_facts"
FROZEN_WEIGHT = "frozen with its layer, and trained only if it is named"
"""Why gamma and beta of a layer that `convert` froze are not trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """What is known of a weight beside its values.

    Attributes:
        untrained: Why it is not trained unless it is named; empty where it is.
        absent: Whether it stands for a parameter that the layer does not have, which nothing
            trains, named or not.
        regularizer: Configuration of a Keras regularizer; None for none.
        constraint: Configuration of a Keras constraint, without its axis; None for none.
        axes: Axes of the weight that the constraint takes the norm over; empty for all.
    """

    untrained: str = ""
    absent: bool = False
    regularizer: dict[str, Any] | None = None
    constraint: dict[str, Any] | None = None
    axes: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self != WeightFacts()


def get(model: ir.Model) -> dict[str, WeightFacts]:
    """Return the facts by name of initializer; empty where none can be read."""
    try:
        found = json.loads(model.metadata_props.get(_KEY, "{}"))
        return {
            str(name): WeightFacts(**{**facts, "axes": tuple(facts["axes"])})
            for name, facts in found.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def put(model: ir.Model, facts: Mapping[str, WeightFacts]) -> None:
    """Replace the facts that the model carries."""
    told = {name: dataclasses.asdict(given) for name, given in sorted(facts.items()) if given}
    if told:
        model.metadata_props[_KEY] = json.dumps(told)
    else:
        model.metadata_props.pop(_KEY, None)


def add(model: ir.Model, name: str, facts: WeightFacts) -> None:
    """Tell of one more weight."""
    put(model, {**get(model), name: facts})


def thaw(model: ir.Model) -> bool:
    """Forget which weights `convert` froze; return whether there were any."""
    known = get(model)
    kept = {name: facts for name, facts in known.items() if facts.untrained != FROZEN_WEIGHT}
    put(model, kept)
    return len(kept) < len(known)


def attach(value: ir.Value, facts: WeightFacts) -> None:
    """Keep facts on a value until its name is settled; see `settle`."""
    value.meta[_VALUE_KEY] = facts


def attached(value: ir.Value) -> WeightFacts:
    """Return what `attach` kept."""
    found = value.meta.get(_VALUE_KEY)
    return found if isinstance(found, WeightFacts) else WeightFacts()


def settle(model: ir.Model) -> None:
    """Let the model tell what is attached to its initializers, under the names that they have."""
    put(model, {**get(model), **{n: attached(v) for n, v in model.graph.initializers.items()}})


def remark(model: ir.Model, remarks: Iterable[str]) -> None:
    """Keep what a user who trains the model should know, such as what it leaves out."""
    told = list(dict.fromkeys((*remarks_of(model), *remarks)))
    if told:
        model.metadata_props[_REMARKS] = json.dumps(told)


def remarks_of(model: ir.Model) -> list[str]:
    """Return what `remark` kept; empty where nothing can be read."""
    try:
        found = json.loads(model.metadata_props.get(_REMARKS, "[]"))
    except ValueError:
        return []
    return [str(text) for text in found] if isinstance(found, list) else []
