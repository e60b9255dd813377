"""Moving statistics that cannot be right, or that nothing has moved yet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from syncbn_convert.form import batchnorm, training_form
from syncbn_convert.form.batchnorm import MOVING_ROLES, BatchNorm
from syncbn_convert.graph import constants, graphs

INITIAL = "still at the initial 0 and 1, so that inference normalizes by nothing that was measured"
_NAMED = 3
_WORDS = {"input_mean": "moving mean", "input_var": "moving variance"}


def ailments(norm: BatchNorm, model: ir.Model) -> Iterator[str]:
    """Yield what is wrong with the moving statistics of a node, each with its name."""
    arrays = {}
    for role in MOVING_ROLES:
        value = norm.parameters.get(role)
        if value is None:
            continue
        what = f"{_WORDS[role]} '{value.name}'"
        tensor = value.const_value if value.is_initializer() else None
        tensor = tensor or constants.constant_tensor(value, model)
        if tensor is None:
            if value.producer() is not None and not _is_next(value):
                yield f"{what} is computed at run time, such as from the batch itself"
            continue
        arrays[role] = tensor.numpy().astype(np.float64)
        found = _of_values(arrays[role], role)
        if found:
            yield f"{what} {found}"
    if len(arrays) == len(MOVING_ROLES) and all(array.size for array in arrays.values()):
        mean, var = (arrays[role] for role in MOVING_ROLES)
        if not mean.any() and (var == 1.0).all():
            yield f"moving mean and variance are {INITIAL}"


def notes(model: ir.Model, *, initial: bool) -> list[str]:
    """Return notes about nodes whose moving statistics are sick.

    Args:
        model: The model.
        initial: Whether statistics that nothing has moved count.
    """
    found: list[str] = []
    unmoved: list[str] = []
    for norm in _norms(model):
        for ailment in ailments(norm, model):
            if not ailment.endswith(INITIAL):
                found.append(f"node '{graphs.label(norm.node)}': {ailment}")
            elif initial:
                unmoved.append(graphs.label(norm.node))
    return [*found, *_unmoved_note(unmoved)]


def _unmoved_note(names: list[str]) -> list[str]:
    """Return one note about the nodes whose statistics nothing has moved."""
    if not names:
        return []
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"node{'s' * (len(names) > 1)} {shown}{more}: moving mean and variance are {INITIAL}"]


def not_finite(model: ir.Model) -> str:
    """Return a message about the first statistic that is NaN or infinite; empty if none is."""
    found = notes(model, initial=False)
    return next((note for note in found if "is NaN" in note or "is infinite" in note), "")


def _norms(model: ir.Model) -> list[BatchNorm]:
    opset = graphs.opset_version(model)
    formed = [BatchNorm(node, opset) for node in training_form.nodes(model)]
    return [*formed, *(norm for norm, _ in batchnorm.find(model))]


def _is_next(value: ir.Value) -> bool:
    """Whether a value is what another call of the layer made of the statistic."""
    node = value.producer()
    return node is not None and (
        training_form.is_sync_batchnorm(node) or batchnorm.is_batchnorm(node)
    )


def _of_values(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], role: str) -> str:
    for word, sick in (
        ("is NaN", np.isnan(values)),
        ("is infinite", np.isinf(values)),
        ("is negative", (values < 0) & (role == "input_var")),
    ):
        if sick.any():
            places = np.argwhere(sick.reshape(-1))[:, 0]
            more = "" if len(places) == 1 else f" and {len(places) - 1} more"
            return f"{word} in channel {int(places[0])}{more}"
    return ""
